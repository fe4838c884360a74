//! The topology file: read, checked, promised, drawn.
use std::path::PathBuf;
use std::time::Duration;
use crate::{sink::SinkSpec, source::SourceSpec, stream::{GroupSpec, StreamSpec}};
#[derive(Clone, Debug)]
pub struct Runtime { pub data_dir: PathBuf, pub drain: Duration, pub threads: usize, pub instance: String, pub watch: bool, pub log: String, pub log_json: bool }
#[derive(Clone, Debug)]
pub struct Topology { pub runtime: Runtime, pub streams: Vec<StreamSpec>, pub sources: Vec<SourceSpec>, pub groups: Vec<GroupSpec>, pub sinks: Vec<SinkSpec> }
