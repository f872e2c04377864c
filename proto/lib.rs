//! Muster's wire contract: the messages, clients and server traits of the gRPC services, generated
//! from `proto/**`, and their descriptor set. The `.proto` files are the documentation. Two
//! messages, of which there are millions of parts, are written by hand:
//! [`CohortChange`](ingest::v1::CohortChange) and [`AudienceBatch`](segments::v1::AudienceBatch).

mod audience_batch;
mod cohort_change;
mod delimited;

pub use audience_batch::EncodedMembers;
pub use cohort_change::Texts;

/// Declares the module of one package around its generated code.
macro_rules! package {
    ($name:ident, $doc:literal $(, $own:path)?) => {
        #[doc = $doc]
        pub mod $name {
            /// Version 1.
            #[allow(
                clippy::allow_attributes_without_reason,
                reason = "generated code is as it is"
            )]
            pub mod v1 {
                $(pub use $own;)?
                include!(concat!(
                    env!("OUT_DIR"),
                    "/muster.",
                    stringify!($name),
                    ".v1.rs"
                ));
            }
        }
    };
}

package!(
    keys,
    "Key management: data import keys, workspaces, partners, tokens, audit."
);
package!(users, "The user directory.");
package!(
    ingest,
    "Cohorts and their imports.",
    crate::cohort_change::CohortChange
);
package!(
    segments,
    "Segments and their audiences.",
    crate::audience_batch::AudienceBatch
);

/// The encoded `FileDescriptorSet` of every package, imports included: for reflection, and for the
/// tests that hold the authorisation table against the contract.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("descriptor_set");
