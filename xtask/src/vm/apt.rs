//! Packages from other suites of Debian, downloaded and unpacked but never installed. The system's
//! apt sources are not touched.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::workspace::{execute, output};

/// An apt with sources, package lists and a cache of its own.
pub struct Apt {
    options: Vec<String>,
    directory: PathBuf,
}

impl Apt {
    /// Sets up an apt for these suites (separated by spaces) of the system's archive, with its
    /// files in `directory`.
    pub fn for_suites(suites: &str, directory: &Path) -> Result<Self> {
        let [parts, lists, cache] = ["parts", "lists", "cache"].map(|name| directory.join(name));
        fs::create_dir_all(&parts)?;
        fs::create_dir_all(lists.join("partial"))?;
        fs::create_dir_all(cache.join("archives/partial"))?;
        // The archive and key are those of the system.
        let own = fs::read_to_string("/etc/apt/sources.list.d/debian.sources")
            .context("this needs Debian's apt and its debian.sources")?;
        let archive = own.split("\n\n").next().unwrap_or_default();
        let other: String = archive
            .lines()
            .map(|line| {
                if line.starts_with("Suites:") {
                    format!("Suites: {suites}\n")
                } else {
                    format!("{line}\n")
                }
            })
            .collect();
        fs::write(parts.join("other.sources"), other)?;
        let option = |name: &str, value: &Path| format!("{name}={}", value.display());
        let apt = Self {
            options: vec![
                "Dir::Etc::SourceList=/dev/null".to_owned(),
                option("Dir::Etc::SourceParts", &parts),
                option("Dir::State::Lists", &lists),
                option("Dir::Cache", &cache),
                // Makes a failed download an error rather than a warning.
                "APT::Update::Error-Mode=any".to_owned(),
                "Acquire::Retries=3".to_owned(),
                // The user _apt might have no access to the directory.
                "APT::Sandbox::User=root".to_owned(),
            ],
            directory: directory.to_owned(),
        };
        execute(apt.command("apt-get").args(["-qq", "update"]))
            .with_context(|| format!("cannot fetch the package lists of Debian {suites}"))?;
        Ok(apt)
    }

    /// Among the packages whose names have this prefix and suffix, the one with the highest version
    /// in its name.
    pub fn newest(&self, prefix: &str, suffix: &str) -> Result<String> {
        let pattern = format!("^{}.*{suffix}$", prefix.replace('.', "\\."));
        let found = output(self.command("apt-cache").args(["search", "--names-only", &pattern]));
        let found = found.unwrap_or_default();
        let newest = found
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .max_by_key(|package| numbers(package.trim_end_matches(suffix)));
        match newest {
            Some(package) => Ok(package.to_owned()),
            None => bail!("no package matches {prefix}*{suffix}"),
        }
    }

    /// Downloads packages and unpacks them below `target`. If that exists, it is complete.
    pub fn unpack(&self, packages: &[&str], target: &Path) -> Result<()> {
        eprintln!("   downloading {}", packages.join(" "));
        let archives = self.directory.join("archives");
        remove(&archives)?;
        fs::create_dir_all(&archives)?;
        execute(
            self.command("apt-get").current_dir(&archives).args(["-qq", "download"]).args(packages),
        )?;
        // Renamed once complete, so that an interrupted run leaves nothing that looks complete.
        let partial = self.directory.join("partial");
        remove(&partial)?;
        for archive in fs::read_dir(&archives)? {
            execute(Command::new("dpkg").arg("-x").arg(archive?.path()).arg(&partial))?;
        }
        remove(&archives)?;
        Ok(fs::rename(partial, target)?)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }
}

/// The numbers in the name of a package, by which to order versions.
fn numbers(package: &str) -> Vec<u64> {
    package
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(numbers("linux-image-6.12.107+deb13") > numbers("linux-image-6.12.94+deb13"));
        assert!(numbers("linux-binary-7.3.4+deb13") > numbers("linux-binary-7.2.13+deb14"));
    }
}
