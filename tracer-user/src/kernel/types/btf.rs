//! A reader of BTF, the type information that the running kernel carries about itself.
//!
//! It answers one kind of question: at which offset does this kernel keep that field of that
//! structure? Structures are reached through the prototypes of the functions and tracepoints that
//! hand them to us, because names are not unique in a kernel (several drivers may each have a
//! `struct foo`).
//!
//! The format is `Documentation/bpf/btf.rst`.

use std::{fs, io, ops::Range};

/// Where the kernel publishes its BTF (since 5.4, with `CONFIG_DEBUG_INFO_BTF`).
pub(crate) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why the kernel's types do not answer a question.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file cannot be read.
    #[error("cannot read {VMLINUX}")]
    Read(#[source] io::Error),
    /// The bytes are not BTF, or of a kind that this reader does not know.
    #[error("the kernel's BTF is not understood: {0}")]
    Malformed(&'static str),
    /// A function, tracepoint or structure is not in this kernel.
    #[error("this kernel has no `{0}`")]
    NoType(String),
    /// A structure has no such field.
    #[error("this kernel's `{container}` has no field `{field}`")]
    NoField {
        /// Name of the structure.
        container: String,
        /// Name of the field.
        field: String,
    },
}

/// The kernel's types.
#[derive(Debug)]
pub(crate) struct Btf<'a> {
    data: &'a [u8],
    strings: Range<usize>,
    /// Position of each type in `data`, by type id less one.
    types: Vec<u32>,
}

/// A structure or union of the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Struct<'a> {
    btf: &'a Btf<'a>,
    id: u32,
}

/// A field of a [`Struct`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<'a> {
    btf: &'a Btf<'a>,
    type_id: u32,
    /// Offset from the start of the structure, in bits.
    bit_offset: u32,
    /// Width in bits if it is a bitfield, else 0.
    bitfield_bits: u32,
}

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FWD: u32 = 7;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_FLOAT: u32 = 16;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// Bytes of `struct btf_type`, before what its kind appends.
const TYPE_BYTES: usize = 12;

/// Reads the running kernel's BTF: some megabytes.
///
/// # Errors
/// If the kernel has none.
pub(crate) fn read() -> Result<Vec<u8>, BtfError> {
    fs::read(VMLINUX).map_err(BtfError::Read)
}

impl<'a> Btf<'a> {
    /// Indexes the bytes of a BTF blob.
    ///
    /// # Errors
    /// If the bytes are not BTF of this machine's byte order, or use a kind of type that is newer
    /// than this reader (whose size is then unknown).
    pub(crate) fn parse(data: &'a [u8]) -> Result<Self, BtfError> {
        const MAGIC: u32 = 0xeb9f;
        let word =
            |at: usize| word_at(data, at).ok_or(BtfError::Malformed("it ends within its header"));
        if word(0)? & 0xffff != MAGIC {
            return Err(BtfError::Malformed("its magic number is wrong"));
        }
        let header_bytes = word(4)? as usize;
        let types = section(data, header_bytes, word(8)?, word(12)?)?;
        let strings = section(data, header_bytes, word(16)?, word(20)?)?;
        let mut positions = Vec::with_capacity(types.len() / 24);
        let mut at = types.start;
        while at < types.end {
            positions.push(
                u32::try_from(at).map_err(|_| BtfError::Malformed("it is larger than 4 GiB"))?,
            );
            let info = word(at + 4)?;
            at += TYPE_BYTES + appended_bytes(info)?;
        }
        Ok(Self { data, strings, types: positions })
    }

    /// The structure that the `index`th parameter of this function points to.
    ///
    /// # Errors
    /// If the kernel has no such function, or the parameter is no pointer to a structure.
    pub(crate) fn function_parameter(
        &self,
        function: &str,
        index: u32,
    ) -> Result<Struct<'_>, BtfError> {
        let func = self.find(KIND_FUNC, function)?;
        self.parameter(self.referenced(func), index)
            .ok_or_else(|| BtfError::NoType(format!("{function}, parameter {index}")))
    }

    /// The number of parameters of this function.
    ///
    /// # Errors
    /// If the kernel has no such function.
    pub(crate) fn function_parameters(&self, function: &str) -> Result<u32, BtfError> {
        let func = self.find(KIND_FUNC, function)?;
        Ok(vlen(self.info(self.referenced(func))))
    }

    /// The structure that this function's return value points to.
    ///
    /// # Errors
    /// If the kernel has no such function, or it returns no pointer to a structure.
    pub(crate) fn function_result(&self, function: &str) -> Result<Struct<'_>, BtfError> {
        let func = self.find(KIND_FUNC, function)?;
        self.pointee(self.referenced(self.referenced(func)))
            .ok_or_else(|| BtfError::NoType(format!("{function}, its result")))
    }

    /// The structure that the `index`th argument of this tracepoint points to.
    ///
    /// # Errors
    /// If the kernel has no such tracepoint, or the argument is no pointer to a structure.
    pub(crate) fn tracepoint_argument(
        &self,
        tracepoint: &str,
        index: u32,
    ) -> Result<Struct<'_>, BtfError> {
        let typedef = self.find(KIND_TYPEDEF, &format!("btf_trace_{tracepoint}"))?;
        // typedef -> pointer -> prototype, whose first parameter is the tracer's own.
        self.parameter(self.referenced(self.referenced(typedef)), index + 1)
            .ok_or_else(|| BtfError::NoType(format!("{tracepoint}, argument {index}")))
    }

    /// The number of arguments of this tracepoint.
    ///
    /// # Errors
    /// If the kernel has no such tracepoint.
    pub(crate) fn tracepoint_arguments(&self, tracepoint: &str) -> Result<u32, BtfError> {
        let typedef = self.find(KIND_TYPEDEF, &format!("btf_trace_{tracepoint}"))?;
        let prototype = self.referenced(self.referenced(typedef));
        Ok(vlen(self.info(prototype)).saturating_sub(1))
    }

    /// The structure of this name. Only for names that are part of the BPF interface itself.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn structure(&self, name: &str) -> Result<Struct<'_>, BtfError> {
        Ok(Struct { btf: self, id: self.find(KIND_STRUCT, name)? })
    }

    /// True if the kernel has a function of this name.
    #[must_use]
    pub(crate) fn has_function(&self, name: &str) -> bool {
        self.function(name).is_ok()
    }

    /// The number of this function's type.
    ///
    /// # Errors
    /// If the kernel has no such function.
    pub(crate) fn function(&self, name: &str) -> Result<u32, BtfError> {
        self.find(KIND_FUNC, name)
    }

    /// True if the kernel has a type of this name, given by `typedef`.
    #[must_use]
    pub(crate) fn has_typedef(&self, name: &str) -> bool {
        self.find(KIND_TYPEDEF, name).is_ok()
    }

    fn find(&self, kind: u32, name: &str) -> Result<u32, BtfError> {
        (1..=u32::try_from(self.types.len()).unwrap_or(u32::MAX))
            .find(|id| self.kind(*id) == kind && self.is_named(*id, name.as_bytes()))
            .ok_or_else(|| BtfError::NoType(name.to_owned()))
    }

    fn parameter(&self, prototype: u32, index: u32) -> Option<Struct<'_>> {
        if self.kind(prototype) != KIND_FUNC_PROTO || index >= vlen(self.info(prototype)) {
            return None;
        }
        let at = self.position(prototype)? + TYPE_BYTES + index as usize * 8;
        self.pointee(word_at(self.data, at + 4)?)
    }

    /// The structure behind a pointer type.
    fn pointee(&self, pointer: u32) -> Option<Struct<'_>> {
        let pointer = self.strip(pointer);
        if self.kind(pointer) != KIND_PTR {
            return None;
        }
        self.as_struct(self.referenced(pointer))
    }

    fn as_struct(&self, id: u32) -> Option<Struct<'_>> {
        let id = self.strip(id);
        matches!(self.kind(id), KIND_STRUCT | KIND_UNION).then_some(Struct { btf: self, id })
    }

    /// Follows typedefs, qualifiers and tags to the type proper.
    fn strip(&self, mut id: u32) -> u32 {
        while matches!(
            self.kind(id),
            KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG
        ) {
            id = self.referenced(id);
        }
        id
    }

    fn position(&self, id: u32) -> Option<usize> {
        self.types.get((id as usize).checked_sub(1)?).map(|at| *at as usize)
    }

    fn word_of(&self, id: u32, offset: usize) -> u32 {
        // Type id 0 is `void`, which has no entry and is of no kind that is asked for.
        self.position(id).and_then(|at| word_at(self.data, at + offset)).unwrap_or(0)
    }

    fn info(&self, id: u32) -> u32 {
        self.word_of(id, 4)
    }

    fn kind(&self, id: u32) -> u32 {
        kind(self.info(id))
    }

    fn referenced(&self, id: u32) -> u32 {
        self.word_of(id, 8)
    }

    fn is_named(&self, id: u32, name: &[u8]) -> bool {
        let strings = self.data.get(self.strings.clone()).unwrap_or_default();
        strings
            .get(self.word_of(id, 0) as usize..)
            .and_then(|rest| rest.strip_prefix(name))
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    fn name(&self, id: u32) -> &[u8] {
        self.string(self.word_of(id, 0))
    }

    fn string(&self, offset: u32) -> &[u8] {
        let strings = self.data.get(self.strings.clone()).unwrap_or_default();
        let rest = strings.get(offset as usize..).unwrap_or_default();
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

impl<'a> Struct<'a> {
    /// The field of this name, also within anonymous members; `a.b` goes into the member `a`.
    ///
    /// # Errors
    /// If this kernel's structure has no such field.
    pub(crate) fn field(&self, path: &str) -> Result<Field<'a>, BtfError> {
        let missing = || BtfError::NoField { container: self.name(), field: path.to_owned() };
        let mut names = path.split('.');
        let first = names.next().unwrap_or_default();
        let mut found = self.member(first).ok_or_else(missing)?;
        for name in names {
            let inner = self.btf.as_struct(found.type_id).ok_or_else(missing)?;
            let member = inner.member(name).ok_or_else(missing)?;
            found = Field { bit_offset: found.bit_offset + member.bit_offset, ..member };
        }
        Ok(found)
    }

    /// The name of the structure, empty if it has none.
    #[must_use]
    pub(crate) fn name(&self) -> String {
        String::from_utf8_lossy(self.btf.name(self.id)).into_owned()
    }

    fn member(&self, name: &str) -> Option<Field<'a>> {
        const MEMBER_BYTES: usize = 12;
        const KIND_FLAG: u32 = 1 << 31;
        let Self { btf, id } = *self;
        let info = btf.info(id);
        let first = btf.position(id)? + TYPE_BYTES;
        (0..vlen(info) as usize).find_map(|index| {
            let at = first + index * MEMBER_BYTES;
            let member_name = btf.string(word_at(btf.data, at)?);
            let type_id = word_at(btf.data, at + 4)?;
            let place = word_at(btf.data, at + 8)?;
            let (bit_offset, bitfield_bits) =
                if info & KIND_FLAG == 0 { (place, 0) } else { (place & 0x00ff_ffff, place >> 24) };
            if member_name == name.as_bytes() {
                return Some(Field { btf, type_id, bit_offset, bitfield_bits });
            }
            if !member_name.is_empty() {
                return None;
            }
            let inner = btf.as_struct(type_id)?.member(name)?;
            Some(Field { bit_offset: bit_offset + inner.bit_offset, ..inner })
        })
    }
}

impl<'a> Field<'a> {
    /// Offset in bytes from the start of the structure.
    #[must_use]
    pub(crate) fn offset(&self) -> u32 {
        self.bit_offset / 8
    }

    /// Bits to drop below the value in the byte at [`offset`](Self::offset).
    #[must_use]
    pub(crate) fn shift(&self) -> u32 {
        self.bit_offset % 8
    }

    /// Width in bits.
    #[must_use]
    pub(crate) fn bits(&self) -> u32 {
        if self.bitfield_bits != 0 {
            return self.bitfield_bits;
        }
        let id = self.btf.strip(self.type_id);
        match self.btf.kind(id) {
            KIND_PTR => usize::BITS,
            KIND_INT | KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64 => {
                self.btf.referenced(id) * 8
            }
            _ => 0,
        }
    }

    /// The structure that this field is, or points to.
    #[must_use]
    pub(crate) fn structure(&self) -> Option<Struct<'a>> {
        self.btf.as_struct(self.type_id).or_else(|| self.btf.pointee(self.type_id))
    }
}

fn kind(info: u32) -> u32 {
    (info >> 24) & 0x1f
}

fn vlen(info: u32) -> u32 {
    info & 0xffff
}

/// Bytes that a type's kind appends to `struct btf_type`.
fn appended_bytes(info: u32) -> Result<usize, BtfError> {
    let vlen = vlen(info) as usize;
    Ok(match kind(info) {
        KIND_PTR | KIND_FWD | KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT
        | KIND_FUNC | KIND_FLOAT | KIND_TYPE_TAG => 0,
        KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * vlen,
        KIND_ENUM | KIND_FUNC_PROTO => 8 * vlen,
        _ => return Err(BtfError::Malformed("it has a kind of type newer than this program")),
    })
}

fn section(
    data: &[u8],
    header_bytes: usize,
    offset: u32,
    length: u32,
) -> Result<Range<usize>, BtfError> {
    let start = header_bytes + offset as usize;
    let range = start..start + length as usize;
    if data.get(range.clone()).is_none() {
        return Err(BtfError::Malformed("a section lies beyond its end"));
    }
    Ok(range)
}

fn word_at(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at + 4)?;
    bytes.try_into().map(u32::from_ne_bytes).ok()
}
