//! The schema, and what it says of a record.

use std::collections::{BTreeMap, BTreeSet};

use boon::{Compiler, Draft, SchemaIndex, Schemas};
use serde_json::Value;

const TEXT: &str = include_str!("../../../docs/records.schema.json");

/// The names that an `enum` of the schema has.
pub fn choices(pointer: &str) -> Vec<String> {
    let json: Value = serde_json::from_str(TEXT).expect("the schema is JSON");
    let choices = json.pointer(pointer).and_then(Value::as_array).expect("there is an enum");
    choices.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Every field that the schema has, and every string that one can be.
pub fn words() -> BTreeSet<String> {
    fn collect(schema: &Value, words: &mut BTreeSet<String>) {
        match schema {
            Value::Object(keywords) => {
                if let Some(Value::Object(fields)) = keywords.get("properties") {
                    words.extend(fields.keys().cloned());
                }
                if let Some(Value::Array(names)) = keywords.get("enum") {
                    words.extend(names.iter().filter_map(Value::as_str).map(str::to_owned));
                }
                keywords.values().for_each(|keyword| collect(keyword, words));
            }
            Value::Array(schemas) => schemas.iter().for_each(|schema| collect(schema, words)),
            _ => {}
        }
    }
    let mut words = BTreeSet::new();
    collect(&serde_json::from_str(TEXT).expect("the schema is JSON"), &mut words);
    words
}

/// The compiled schema: one for each type, so that an error names the field and not twenty types
/// that the record is not.
pub struct Schema {
    all: Schemas,
    whole: SchemaIndex,
    by_type: BTreeMap<String, SchemaIndex>,
}

impl Schema {
    pub fn load() -> Self {
        let json: Value = serde_json::from_str(TEXT).expect("the schema is JSON");
        let id = json["$id"].as_str().expect("the schema has an id").to_owned();
        let choices = json["oneOf"].as_array().expect("the schema is a choice").clone();
        let mut compiler = Compiler::new();
        compiler.set_default_draft(Draft::V2020_12);
        compiler.enable_format_assertions();
        compiler.add_resource(&id, json).expect("the schema is a schema");
        let mut all = Schemas::new();
        let mut compile = |pointer: &str| {
            let location = format!("{id}{pointer}");
            compiler.compile(&location, &mut all).unwrap_or_else(|error| panic!("{error:#}"))
        };
        let whole = compile("");
        let by_type = choices
            .iter()
            .map(|choice| {
                let pointer = choice["$ref"].as_str().expect("each choice is a reference");
                let name = pointer.rsplit('/').next().expect("it has a name");
                (name.to_owned(), compile(pointer))
            })
            .collect();
        Self { all, whole, by_type }
    }

    /// The types that it describes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_type.keys().map(String::as_str)
    }

    pub fn is_valid(&self, record: &Value) -> bool {
        self.all.validate(record, self.whole).is_ok()
    }

    /// # Panics
    /// If the record is not what its type is.
    pub fn assert_valid(&self, record: &Value) {
        let name = record["type"].as_str().expect("a record has a type");
        let index = self.by_type.get(name).unwrap_or_else(|| panic!("no type `{name}`: {record}"));
        if let Err(error) = self.all.validate(record, *index) {
            panic!("{error:#}\n{record}");
        }
        assert!(self.is_valid(record), "it is of several types: {record}");
    }
}
