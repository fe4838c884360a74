//! The topology file: read, checked, promised, drawn.
#![allow(missing_docs)]
use crate::{
    sink::SinkSpec,
    source::SourceSpec,
    stream::{GroupSpec, StreamSpec},
};
use std::path::PathBuf;
use std::time::Duration;
#[derive(Clone, Debug)]
pub struct Runtime {
    pub data_dir: PathBuf,
    pub drain: Duration,
    pub threads: usize,
    pub instance: String,
    pub watch: bool,
    pub log: String,
    pub log_json: bool,
}
#[derive(Clone, Debug)]
pub struct Http {
    pub listen: String,
    pub admin: Option<String>,
    pub tls: Option<Tls>,
}
#[derive(Clone, Debug)]
pub struct Topology {
    pub runtime: Runtime,
    pub http: Option<Http>,
    pub streams: Vec<StreamSpec>,
    pub sources: Vec<SourceSpec>,
    pub groups: Vec<GroupSpec>,
    pub sinks: Vec<SinkSpec>,
    pub warnings: Vec<String>,
}
impl Topology {
    pub fn load(_: &std::path::Path) -> Result<Topology, String> {
        Err("x".into())
    }
    pub fn routes(&self) -> Vec<String> {
        vec![]
    }
}

#[derive(Clone, Debug)]
pub struct Tls {
    pub cert: PathBuf,
    pub key: PathBuf,
}
