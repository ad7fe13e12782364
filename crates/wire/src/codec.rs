//! JSON as the body of gRPC messages.

use std::marker::PhantomData;

use bytes::{Buf as _, BufMut as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Turns `T` into JSON and JSON into `U`.
#[derive(Debug)]
pub(crate) struct JsonCodec<T, U>(PhantomData<fn(T) -> U>);

impl<T, U> Default for JsonCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for JsonCodec<T, U>
where
    T: Serialize + Send + 'static,
    U: DeserializeOwned + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = JsonEncoder<T>;
    type Decoder = JsonDecoder<U>;

    fn encoder(&mut self) -> JsonEncoder<T> {
        JsonEncoder(PhantomData)
    }

    fn decoder(&mut self) -> JsonDecoder<U> {
        JsonDecoder(PhantomData)
    }
}

/// Writes JSON.
#[derive(Debug)]
pub(crate) struct JsonEncoder<T>(PhantomData<fn(T)>);

impl<T: Serialize> Encoder for JsonEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        serde_json::to_writer(buffer.writer(), &item)
            .map_err(|e| Status::internal(format!("write the message: {e}")))
    }
}

/// Reads JSON. The bound on the size is the framing's.
#[derive(Debug)]
pub(crate) struct JsonDecoder<U>(PhantomData<fn() -> U>);

impl<U: DeserializeOwned> Decoder for JsonDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| Status::invalid_argument(format!("the message is not as expected: {e}")))
    }
}
