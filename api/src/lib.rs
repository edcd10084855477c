//! The wire. Between sidecar and control plane: `proto/postern.proto`; between a workload and its sidecar, or a SPIRE agent:
//! the SPIFFE Workload API and Envoy's SDS. All of it is generated; read the comments of the files under `proto`.
#![allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::expect_used)]

/// Messages and services of `postern.v1`.
pub mod v1 {
    tonic::include_proto!("postern.v1");
}

/// Interfaces of others: the SPIFFE Workload API, which has no package, at the top; `envoy` and `google` below it.
pub mod open {
    include!(concat!(env!("OUT_DIR"), "/open.rs"));

    /// Descriptors of everything in this module, for server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/open.bin"));

    /// Keys, tokens and what may be one of them are not printed.
    macro_rules! opaque {
        ($($type:ty => $name:literal),*) => {$(
            impl std::fmt::Debug for $type {
                fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str(concat!($name, "(..)"))
                }
            }
        )*};
    }
    opaque! {
        X509svid => "X509SVID",
        Jwtsvid => "JWTSVID",
        ValidateJwtsvidRequest => "ValidateJWTSVIDRequest",
        envoy::config::core::v3::DataSource => "DataSource",
        google::protobuf::Any => "Any"
    }
}
