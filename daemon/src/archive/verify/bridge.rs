//! Owns the way from an asynchronous stream to the blocking readers that verify
//! it: bytes are seen by the [`Envelope`] as they come, then gunzipped by
//! `async-compression`, then read by the `tar` crate.

use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use async_compression::tokio::bufread::GzipDecoder;
use futures::executor::block_on;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, ReadBuf};

use super::envelope::Envelope;

/// Bytes asked of the stream at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// A buffer over a stream that shows every byte to an envelope.
#[derive(Debug)]
pub(super) struct Seen<R> {
    stream: R,
    buffer: Vec<u8>,
    range: std::ops::Range<usize>,
    envelope: Envelope,
    /// What the stream itself failed with, which is no word on the bytes.
    failure: Option<io::Error>,
}

impl<R: AsyncRead + Unpin> Seen<R> {
    fn new(stream: R, envelope: Envelope) -> Self {
        let buffer = vec![0; BUFFER_BYTES];
        Self { stream, buffer, range: 0..0, envelope, failure: None }
    }
}

impl<R: AsyncRead + Unpin> AsyncBufRead for Seen<R> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if this.range.is_empty() {
            let mut room = ReadBuf::new(&mut this.buffer);
            if let Err(error) = ready!(Pin::new(&mut this.stream).poll_read(cx, &mut room)) {
                let told = io::Error::new(error.kind(), "the stream failed");
                this.failure.get_or_insert(error);
                return Poll::Ready(Err(told));
            }
            this.envelope.see(room.filled());
            this.range = 0..room.filled().len();
        }
        Poll::Ready(Ok(&this.buffer[this.range.clone()]))
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        self.get_mut().range.start += amount;
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Seen<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let bytes = ready!(self.as_mut().poll_fill_buf(cx))?;
        let len = bytes.len().min(room.remaining());
        room.put_slice(&bytes[..len]);
        self.consume(len);
        Poll::Ready(Ok(()))
    }
}

/// The tar stream of an object, as a blocking reader that counts.
#[derive(Debug)]
pub(super) struct TarStream<R> {
    gunzip: GzipDecoder<Seen<R>>,
    read: u64,
}

impl<R: AsyncRead + Unpin> TarStream<R> {
    pub(super) fn new(stream: R, envelope: Envelope) -> Self {
        Self { gunzip: GzipDecoder::new(Seen::new(stream, envelope)), read: 0 }
    }

    /// Bytes of tar read so far.
    pub(super) fn read_so_far(&self) -> u64 {
        self.read
    }

    /// Reads what is left of the object, whatever it is, and gives the envelope
    /// back; or the error with which the stream failed, now or before.
    pub(super) fn into_envelope(self) -> io::Result<Envelope> {
        let mut seen = self.gunzip.into_inner();
        while seen.failure.is_none() {
            match block_on(seen.fill_buf()) {
                Ok([]) => return Ok(seen.envelope),
                Ok(bytes) => {
                    let len = bytes.len();
                    seen.consume(len);
                }
                Err(error) => return Err(seen.failure.unwrap_or(error)),
            }
        }
        match seen.failure {
            Some(error) => Err(error),
            None => Ok(seen.envelope),
        }
    }
}

impl<R: AsyncRead + Unpin> Read for TarStream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = block_on(self.gunzip.read(buffer))?;
        self.read += len as u64;
        Ok(len)
    }
}

/// A local file as a stream that is always ready. Only for blocking threads.
#[derive(Debug)]
pub(super) struct LocalFile(pub(super) std::fs::File);

impl AsyncRead for LocalFile {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let len = self.get_mut().0.read(room.initialize_unfilled())?;
        room.advance(len);
        Poll::Ready(Ok(()))
    }
}
