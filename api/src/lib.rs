//! The wire. Between sidecar and control plane: `proto/postern.proto`; between a workload and its sidecar, or a SPIRE agent:
//! the SPIFFE Workload API and Envoy's SDS. All of it is generated; read the comments of the files under `proto`.
#![allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::expect_used)]

pub mod histogram;
pub mod process;

use std::marker::PhantomData;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// prost with buffers that begin small and grow with what they carry. A stream keeps two of them for hours, and tonic's own
/// begin with 8 KiB each, which at ten thousand sidecars is most of what a control plane holds.
pub struct SmallBuffers<T, U>(PhantomData<(T, U)>);

/// Bytes; an ack has about fifty, a policy without rules about five hundred.
const BUFFER: usize = 512;
/// Bytes that are encoded before they are handed on; tonic's default.
const YIELD: usize = 32 * 1024;

impl<T, U> Default for SmallBuffers<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: prost::Message + Send + 'static,
    U: prost::Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, YIELD))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, YIELD))
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    /// What a stream holds while it is idle depends on this, and tonic says it in no other way.
    #[test]
    fn buffers_of_a_stream_begin_small_and_batches_are_as_large_as_ever() {
        use tonic::codec::{Decoder as _, Encoder as _};
        let mut codec = SmallBuffers::<v1::ControlMessage, v1::SidecarMessage>::default();
        for settings in [codec.encoder().buffer_settings(), codec.decoder().buffer_settings()] {
            let expected = BufferSettings::new(512, 32 * 1024);
            assert_eq!(format!("{settings:?}"), format!("{expected:?}"));
        }
    }
}
