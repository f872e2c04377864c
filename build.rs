//! Compiles `proto/**` with protox, so that no `protoc` is needed on the machine.

use std::{env, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = [
        "muster/keys/v1/key_service.proto",
        "muster/keys/v1/integration_service.proto",
        "muster/users/v1/identifier.proto",
        "muster/users/v1/user_service.proto",
        "muster/ingest/v1/ingest_cohort.proto",
        "muster/ingest/v1/ingest_service.proto",
        "muster/segments/v1/filter.proto",
        "muster/segments/v1/segment_service.proto",
    ];
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(true).include_imports(true);
    let descriptors = compiler.open_files(files)?.file_descriptor_set();
    let out = PathBuf::from(env::var("OUT_DIR")?).join("descriptor_set.bin");
    fs::write(out, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .extern_path(
            ".muster.ingest.v1.CohortChange",
            "crate::ingest::v1::CohortChange",
        )
        .extern_path(
            ".muster.segments.v1.AudienceBatch",
            "crate::segments::v1::AudienceBatch",
        )
        .compile_fds(descriptors)?;
    Ok(())
}
