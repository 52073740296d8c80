//! The gRPC wire of tierd: generated types and nothing else.
//!
//! `proto/tierd/v1/archive.proto` is the source and the reference; its comments
//! are the documentation of the types in [`v1`]. Who wants to read an archive
//! from Rust takes the crate `tierd-client`, which hides all of this.
//!
//! Owns the shape of the messages. Does not own what they mean to a partition
//! (the daemon's `fetch`) nor to a broker (`tierd-client`).

/// The first version of the API: messages, [`v1::archive_client`] and
/// [`v1::archive_server`].
pub mod v1 {
    tonic::include_proto!("tierd.v1");

    /// Most bytes of batches in one [`Data`] frame: 1 MiB. gRPC libraries refuse
    /// messages above 4 MiB unless told otherwise.
    pub const DATA_FRAME_BYTES_MAX: usize = 1 << 20;
}

/// The descriptors of every file of the API, encoded as a
/// `google.protobuf.FileDescriptorSet`, comments included: for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/tierd.v1.descriptors"));
