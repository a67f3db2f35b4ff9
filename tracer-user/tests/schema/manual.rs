//! `docs/json.md`: its examples are valid, and it leaves out nothing that the schema has.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::schema::{self, Schema};

const TEXT: &str = include_str!("../../../docs/json.md");

#[test]
fn there_is_a_valid_example_of_every_type() {
    let schema = Schema::load();
    let blocks = TEXT.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next());
    let examples: Vec<Value> = blocks
        .map(|block| serde_json::from_str(block).unwrap_or_else(|error| panic!("{error}: {block}")))
        .collect();
    for example in &examples {
        schema.assert_valid(example);
    }
    let shown: BTreeSet<_> = examples.iter().filter_map(|it| it["type"].as_str()).collect();
    assert_eq!(shown, schema.names().collect());
}

#[test]
fn every_field_and_every_name_is_described() {
    let described: BTreeSet<&str> = TEXT.split('`').skip(1).step_by(2).collect();
    let missing: Vec<_> =
        schema::words().into_iter().filter(|word| !described.contains(word.as_str())).collect();
    assert!(missing.is_empty(), "docs/json.md does not mention {missing:?}");
}
