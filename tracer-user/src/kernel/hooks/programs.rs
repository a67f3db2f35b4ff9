//! The programs of a loaded object, each taken by its name, so that several can be loaded at once.

use std::{collections::BTreeMap, error::Error as _};

use aya::{
    Ebpf,
    programs::{Program, ProgramError},
};

/// The programs that have not been taken yet.
pub(crate) struct Programs<'a>(BTreeMap<&'a str, &'a mut Program>);

impl<'a> Programs<'a> {
    /// All programs of the object.
    pub(crate) fn of(ebpf: &'a mut Ebpf) -> Self {
        Self(ebpf.programs_mut().collect())
    }

    /// The program of this name and type.
    ///
    /// # Errors
    /// If there is none, or it is of another type.
    pub(crate) fn get<'b, P>(&'b mut self, name: &str) -> Result<&'b mut P, ProgramError>
    where
        &'b mut P: TryFrom<&'b mut Program, Error = ProgramError>,
    {
        let program = self.0.get_mut(name).ok_or(ProgramError::NotLoaded)?;
        (&mut **program).try_into()
    }

    /// Takes the program of this name out, if there is one.
    pub(crate) fn take(&mut self, name: &str) -> Option<&'a mut Program> {
        self.0.remove(name)
    }
}

/// The kernel's reason for refusing a program: the errno, and the verifier's last word if it had
/// one.
pub(crate) fn reason(error: &ProgramError) -> String {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let log = verifier_log.to_string();
        // The last lines are statistics; the one before them is the verdict.
        let verdict = log.lines().rev().find(|line| {
            let line = line.trim();
            !line.is_empty()
                && !["verification time", "stack depth", "processed"]
                    .iter()
                    .any(|statistic| line.starts_with(statistic))
        });
        return match verdict {
            Some(verdict) => format!("{io_error}: {}", verdict.trim()),
            None => io_error.to_string(),
        };
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
