//! Writes segments: frame after frame, whole or broken, quickly where they are many.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tierd::record::{BatchHeader, CanonicalRecord, CanonicalRecordEntry, Codec, Header};

use super::{FrameCrc, FrameParts, OffsetPlaces, Style, seal};

/// One batch's frame, to be written again and again at other offsets: only what
/// follows the base offset is patched, so that a gigabyte takes seconds.
#[derive(Clone, Debug)]
pub struct Template {
    frame: Vec<u8>,
    places: OffsetPlaces,
    wire: Bytes,
    base: i64,
    span: i64,
}

impl Template {
    /// The frame that a current broker writes for `wire`.
    ///
    /// # Errors
    /// When `wire` is no batch that decodes.
    pub fn new(topic: &str, partition: i32, wire: &Bytes) -> Result<Self> {
        let parts = FrameParts::of_batch(topic, partition, wire, Style::CURRENT)?;
        let (frame, places) = parts.encode_noting();
        let span = i64::from(parts.header.last_offset_delta) + 1;
        Ok(Self { frame, places, wire: wire.clone(), base: parts.base_offset, span })
    }

    /// Offsets that one batch takes.
    #[must_use]
    pub fn span(&self) -> i64 {
        self.span
    }

    /// The frame with its batch at `base`.
    pub fn frame_at(&mut self, base: i64) -> &[u8] {
        let shift = base - self.base;
        let payload_at = 22 + usize::from(u16::from_le_bytes([self.frame[12], self.frame[13]]));
        let trailer_at = self.frame.len() - 20;
        let little = [payload_at, trailer_at, trailer_at + 8];
        for at in little.into_iter().chain(self.places.entries.iter().copied()) {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&self.frame[at..at + 8]);
            let shifted = i64::from_le_bytes(bytes) + shift;
            self.frame[at..at + 8].copy_from_slice(&shifted.to_le_bytes());
        }
        if let Some(at) = self.places.batch {
            self.frame[at..at + 8].copy_from_slice(&base.to_be_bytes());
        }
        self.base = base;
        seal(&mut self.frame, FrameCrc::AsItLies);
        &self.frame
    }

    /// The batch at `base`, as it stands on the wire.
    #[must_use]
    pub fn wire_at(&self, base: i64) -> Bytes {
        let mut wire = self.wire.to_vec();
        wire[..8].copy_from_slice(&base.to_be_bytes());
        wire.into()
    }
}

/// Where in a segment something was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// First byte.
    pub position: u64,
    /// Bytes.
    pub len: u64,
}

/// Writes one segment file of a WAL directory.
#[derive(Debug)]
pub struct WalWriter {
    file: BufWriter<File>,
    path: PathBuf,
    topic: String,
    partition: i32,
    style: Style,
    position: u64,
}

impl WalWriter {
    /// Creates `{root}/{topic}/{partition}/wal_{partition}_{segment_id}.log`, or
    /// empties it.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn create(root: &Path, topic: &str, partition: i32, segment_id: u64) -> Result<Self> {
        let folder = root.join(topic).join(partition.to_string());
        fs::create_dir_all(&folder)?;
        let path = folder.join(format!("wal_{partition}_{segment_id}.log"));
        let file = BufWriter::with_capacity(1 << 20, File::create(&path)?);
        let topic = topic.to_owned();
        Ok(Self { file, path, topic, partition, style: Style::CURRENT, position: 0 })
    }

    /// Writes like another version of the broker.
    #[must_use]
    pub fn styled(mut self, style: Style) -> Self {
        self.style = style;
        self
    }

    /// Bytes written so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Appends bytes as they are: garbage, or frames made elsewhere.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn append_raw(&mut self, bytes: &[u8]) -> Result<Place> {
        self.file.write_all(bytes)?;
        let place = Place { position: self.position, len: bytes.len() as u64 };
        self.position += place.len;
        Ok(place)
    }

    /// Appends a frame for a batch as it stands on the wire, offsets assigned.
    ///
    /// # Errors
    /// When it is no batch that decodes.
    pub fn append(&mut self, batch_wire: &Bytes) -> Result<Place> {
        let frame = self.frame(batch_wire)?;
        self.append_raw(&frame)
    }

    /// Appends frames for all of `batches` in an order that depends on `seed`, as
    /// concurrent producers do. Gives the order.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn append_shuffled(&mut self, batches: &[Bytes], seed: u64) -> Result<Vec<usize>> {
        let mut order: Vec<_> = (0..batches.len()).collect();
        order.shuffle(&mut StdRng::seed_from_u64(seed));
        for which in &order {
            self.append(&batches[*which])?;
        }
        Ok(order)
    }

    /// Appends the first `keep` bytes of a frame, as a crash or a failed write does.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn append_torn(&mut self, batch_wire: &Bytes, keep: usize) -> Result<Place> {
        let frame = self.frame(batch_wire)?;
        self.append_raw(&frame[..keep.min(frame.len() - 1)])
    }

    /// Appends `template` from offset `base` on until the segment has `bytes` bytes
    /// or more. Gives the offset after the last.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn fill(&mut self, template: &mut Template, mut base: i64, bytes: u64) -> Result<i64> {
        while self.position < bytes {
            self.append_raw(template.frame_at(base))?;
            base += template.span();
        }
        Ok(base)
    }

    /// Writes out what is buffered and gives the path.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn finish(mut self) -> Result<PathBuf> {
        self.file.flush()?;
        Ok(self.path)
    }

    fn frame(&self, wire: &Bytes) -> Result<Vec<u8>> {
        Ok(FrameParts::of_batch(&self.topic, self.partition, wire, self.style)?.encode())
    }
}

/// Flips the bits of `mask` in one byte of a file.
///
/// # Errors
/// When the byte does not exist.
pub fn damage(path: &Path, position: u64, mask: u8) -> Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.seek(SeekFrom::Start(position))?;
    file.read_exact(&mut byte)?;
    file.seek(SeekFrom::Start(position))?;
    file.write_all(&[byte[0] ^ mask])?;
    Ok(())
}

/// A batch of `count` records with keys, values of `value_len` bytes that compress
/// to about half, and now and then a header. The same arguments give the same bytes.
///
/// # Errors
/// When `count` is below 1 or the batch grows too large.
pub fn sample_batch(base: i64, count: i32, value_len: usize, codec: Codec) -> Result<Bytes> {
    let mut random = StdRng::seed_from_u64(base as u64 ^ (value_len as u64) << 32);
    let time = 1_700_000_000_000 + base;
    let mut entries = Vec::new();
    for i in 0..count {
        let value: Vec<u8> = (0..value_len)
            .map(|at| if at % 2 == 0 { b'0' + random.random_range(0..10_u8) } else { b'.' })
            .collect();
        let header = Header { name: "trace".into(), value: (i % 2 == 0).then(|| "on".into()) };
        entries.push(CanonicalRecordEntry {
            offset: base + i64::from(i),
            timestamp: time + i64::from(i),
            attributes: 0,
            key: (i % 5 != 0).then(|| format!("key-{}", i % 100).into()),
            value: (i % 7 != 6).then(|| value.into()),
            headers: (i % 3 == 0).then_some(header).into_iter().collect(),
        });
    }
    let header = BatchHeader {
        base_offset: base,
        batch_length: 0,
        partition_leader_epoch: -1,
        crc: 0,
        attributes: codec.bits(),
        last_offset_delta: count - 1,
        base_timestamp: time,
        max_timestamp: time + i64::from(count) - 1,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        record_count: count,
    };
    Ok(CanonicalRecord::from_entries(header, entries)?.to_kafka_batch()?)
}

/// A batch of one record at `base` that does not compress, of `bytes` bytes of value.
///
/// # Errors
/// When it is larger than a batch may be.
pub fn noise_batch(base: i64, bytes: usize) -> Result<Bytes> {
    let sample = CanonicalRecord::from_wire(sample_batch(base, 1, 1, Codec::None)?)?;
    let mut entries = sample.decode()?;
    let mut value = vec![0; bytes];
    blake3::Hasher::new().update(&base.to_le_bytes()).finalize_xof().fill(&mut value);
    entries[0].value = Some(value.into());
    Ok(CanonicalRecord::from_entries(*sample.header(), entries)?.to_kafka_batch()?)
}

/// The first batch of a transaction of producer `base`: one record, at `base`.
///
/// # Errors
/// As [`sample_batch`].
pub fn transactional_batch(base: i64) -> Result<Bytes> {
    let sample = CanonicalRecord::from_wire(sample_batch(base, 1, 1, Codec::None)?)?;
    let mut header = *sample.header();
    header.attributes |= 0x10;
    (header.producer_id, header.producer_epoch, header.base_sequence) = (base, 0, 0);
    Ok(CanonicalRecord::from_entries(header, sample.decode()?)?.to_kafka_batch()?)
}
