//! The types a column can have, by their usual SQL names.

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Whatever the value is by itself.
    Any,
    /// True or false.
    Bool,
    /// A whole number of this many bits, signed.
    Int(u8),
    /// A floating-point number of 64 bits.
    Float,
    /// A decimal number of any length, kept as its digits.
    Numeric,
    /// Text.
    Text,
    /// A point in time, in microseconds.
    Timestamp,
    /// A UUID.
    Uuid,
    /// A JSON value.
    Json,
    /// Bytes.
    Bytes,
}

impl Type {
    /// Every name that [`Type::parse`] knows, lower case.
    pub const NAMES: &'static [(&'static str, Type)] = &[
        ("bigint", Type::Int(64)),
        ("int8", Type::Int(64)),
        ("integer", Type::Int(32)),
        ("int", Type::Int(32)),
        ("int4", Type::Int(32)),
        ("smallint", Type::Int(16)),
        ("int2", Type::Int(16)),
        ("double precision", Type::Float),
        ("double", Type::Float),
        ("float8", Type::Float),
        ("float", Type::Float),
        ("real", Type::Float),
        ("float4", Type::Float),
        ("numeric", Type::Numeric),
        ("decimal", Type::Numeric),
        ("text", Type::Text),
        ("varchar", Type::Text),
        ("character varying", Type::Text),
        ("char", Type::Text),
        ("character", Type::Text),
        ("boolean", Type::Bool),
        ("bool", Type::Bool),
        ("timestamptz", Type::Timestamp),
        ("timestamp", Type::Timestamp),
        ("timestamp with time zone", Type::Timestamp),
        ("timestamp without time zone", Type::Timestamp),
        ("datetime", Type::Timestamp),
        ("uuid", Type::Uuid),
        ("json", Type::Json),
        ("jsonb", Type::Json),
        ("bytea", Type::Bytes),
        ("blob", Type::Bytes),
    ];

    /// The type of this SQL name, whatever its case; a length or precision in parentheses
    /// (`varchar(20)`, `timestamp(3) with time zone`) is passed over.
    pub fn parse(name: &str) -> Option<Self> {
        let mut plain = String::with_capacity(name.len());
        let mut depth = 0;
        for part in name.chars() {
            match part {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ if depth == 0 => plain.extend(part.to_lowercase()),
                _ => {}
            }
        }
        let plain = plain.split_whitespace().collect::<Vec<_>>().join(" ");
        Self::NAMES.iter().find(|(known, _)| *known == plain).map(|(_, ty)| *ty)
    }
}
