//! Compiles `archive.proto` with protox, so that building needs no `protoc`.

use std::path::PathBuf;
use std::{env, fs};

use protox::prost::Message;

const PROTO_ROOT: &str = "proto";
const PROTO: &str = "tierd/v1/archive.proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed={PROTO_ROOT}");

    let descriptors = protox::compile([PROTO], [PROTO_ROOT])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("tierd.v1.descriptors"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
