//! Looks up a field and checks that the programs can read it as they do.

use tracer_ebpf::BitField;

use crate::kernel::types::btf::{BtfError, Field, Struct};

/// The offset of a field that must be `bits` wide, because that is how the programs read it.
pub(crate) fn scalar(container: &Struct<'_>, path: &str, bits: u32) -> Result<u32, BtfError> {
    let field = container.field(path)?;
    if field.bits() != bits || field.shift() != 0 {
        return Err(BtfError::NoField {
            container: container.name(),
            field: format!("{path} of {bits} bits (it has {})", field.bits()),
        });
    }
    Ok(field.offset())
}

/// Where to find a field that lies within one byte.
pub(crate) fn bitfield(container: &Struct<'_>, path: &str) -> Result<BitField, BtfError> {
    let field = container.field(path)?;
    let (offset, shift, bits) = (field.offset(), field.shift(), field.bits());
    if bits == 0 || shift + bits > 8 {
        return Err(BtfError::NoField {
            container: container.name(),
            field: format!("{path} within one byte"),
        });
    }
    Ok(BitField { offset, shift, mask: (1 << bits) - 1 })
}

/// The structure that a field contains or points to. `path` names the field in the error.
pub(crate) fn pointed<'a>(
    container: &Struct<'a>,
    field: Field<'a>,
    path: &str,
) -> Result<Struct<'a>, BtfError> {
    field.structure().ok_or_else(|| BtfError::NoField {
        container: container.name(),
        field: format!("{path} that leads to a structure"),
    })
}
