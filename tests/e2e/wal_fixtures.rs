//! The WAL reader against what a real broker wrote, and the harness's WAL writer
//! against the same: the writer may stand in for the broker only while it makes
//! the broker's bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tierd::record::{Codec, TopicName, TopicPartition};
use tierd::wal::{
    FrameFlags, PartitionDir, SegmentReader, SegmentScan, Skipped, WalDir, WalFormat, scan,
};
use tierd_tests::chronik::{
    Fields, FrameCrc, FrameParts, Layout, Style, Template, WalWriter, damage, sample_batch,
};

const FORMAT: WalFormat = WalFormat::Chronik;

/// What a broker wrote, and `batches.tsv`: what an independent reader found in it.
fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/chronik-2.10.4")
}

fn partitions(root: &Path) -> Result<Vec<PartitionDir>> {
    let listing = WalDir::open(root, FORMAT)?.partitions()?;
    ensure!(listing.findings.is_empty(), "{:?}", listing.findings);
    Ok(listing.partitions)
}

/// Scans the only segment of the only partition, and reads its batches.
fn only(root: &Path) -> Result<(SegmentScan, Vec<Bytes>)> {
    let partition = partitions(root)?.pop().context("no partition")?;
    let [segment] = &partition.segments[..] else { anyhow::bail!("{:?}", partition.segments) };
    let found = scan(FORMAT, &partition.tp, segment)?;
    let mut reader = SegmentReader::open(FORMAT, &partition.tp, segment)?;
    let batches = found.frames.iter().map(|frame| Ok(reader.batch(frame)?.to_kafka_batch()?));
    let batches = batches.collect::<Result<_>>()?;
    Ok((found, batches))
}

#[test]
fn every_batch_that_an_independent_reader_found_is_found_in_the_same_order() -> Result<()> {
    let table = fs::read_to_string(fixture().join("batches.tsv"))?;
    let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in table.lines().skip(1) {
        let columns: Vec<_> = line.split('\t').collect();
        let [topic, partition, id, base, last, count, attributes, pid, seq, len, sha] = columns[..]
        else {
            anyhow::bail!("{line}");
        };
        expected
            .entry(format!("{topic}/{partition}/{id}"))
            .or_default()
            .push(format!("{base} {last} {count} {attributes} {pid} {seq} {len} {sha}"));
    }
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let partitions = partitions(&fixture().join("wal"))?;
    let names: Vec<_> = partitions.iter().map(|p| p.tp.to_string()).collect();
    assert_eq!(names, ["busy-0", "clicks.日本_1-0", "orders-0", "orders-1", "payments-0"]);
    for partition in partitions {
        for segment in &partition.segments {
            let scan = scan(FORMAT, &partition.tp, segment)?;
            assert_eq!((scan.len, scan.torn_at), (segment.len, None));
            assert_eq!((scan.damaged, scan.skipped), (vec![], Skipped::default()));
            let mut reader = SegmentReader::open(FORMAT, &partition.tp, segment)?;
            let name =
                format!("{}/{}/{}", partition.tp.topic(), partition.tp.partition(), segment.id);
            for frame in &scan.frames {
                assert_eq!(frame.flags, FrameFlags::default());
                let batch = reader.batch(frame)?;
                batch.verify_crc()?;
                let (wire, header) = (batch.to_kafka_batch()?, batch.header());
                assert_eq!((frame.base, frame.last()), (header.base_offset, header.last_offset()));
                assert_eq!(frame.wire_len as usize, wire.len());
                assert_eq!(frame.wire_crc32c, crc32c::crc32c(&wire));
                let sha: String =
                    Sha256::digest(&wire).iter().map(|b| format!("{b:02x}")).collect();
                found.entry(name.clone()).or_default().push(format!(
                    "{} {} {} {} {} {} {} {sha}",
                    frame.base,
                    frame.last(),
                    header.record_count,
                    header.attributes,
                    header.producer_id,
                    header.base_sequence,
                    wire.len(),
                ));
            }
        }
    }
    assert_eq!(found.values().map(Vec::len).sum::<usize>(), 267);
    assert_eq!(found, expected);
    Ok(())
}

#[test]
fn the_writer_makes_every_frame_of_the_fixture_byte_for_byte() -> Result<()> {
    let mut frames = 0;
    for partition in partitions(&fixture().join("wal"))? {
        for segment in &partition.segments {
            let bytes = fs::read(&segment.path)?;
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (parts, len) = FrameParts::decode(rest)?;
                assert!(parts.encode() == rest[..len], "taken to pieces and put together");
                // And from the batch alone, as the broker does it.
                let wire = parts.options[2].clone().context("no field 15")?;
                let (topic, number) = (partition.tp.topic().as_str(), partition.tp.partition());
                let made = FrameParts::of_batch(topic, number, &wire, Style::CURRENT)?;
                assert_eq!(made.encode().len(), len);
                assert!(made.encode() == rest[..len], "made from the batch: {parts:?}");
                rest = &rest[len..];
                frames += 1;
            }
        }
    }
    assert_eq!(frames, 267);
    Ok(())
}

#[test]
fn the_writer_makes_the_frame_of_the_specification() -> Result<()> {
    let vector = "\
7eca0200fa0000008bb342ba01007403000000db0000000500000000000000ffffffffffffffffffffffffffffffffffff\
000000000000000000000068e5cf8b0100000068e5cf8b010000010000000000000005000000000000000068e5cf8b0100\
000101000000000000006b0101000000000000007601000000000000000100000000000000680000010c00000000000000\
16000000026b0276020268010001490000000000000000000000000000050000003dffffffff02ecc46c11000000000000\
0000018bcfe568000000018bcfe56800ffffffffffffffffffffffffffff0000000116000000026b027602026801050000\
0000000000050000000000000001000000";
    let digits = vector.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair));
    let bytes: Vec<u8> =
        digits.map(|pair| Ok(u8::from_str_radix(pair?, 16)?)).collect::<Result<_>>()?;
    let (parts, len) = FrameParts::decode(&bytes)?;
    assert_eq!(len, 262);
    assert_eq!(parts.encode(), bytes);
    let wire = parts.options[2].clone().context("no field 15")?;
    assert_eq!(FrameParts::of_batch("t", 3, &wire, Style::CURRENT)?.encode(), bytes);
    Ok(())
}

#[test]
fn what_every_version_of_the_broker_wrote_is_read() -> Result<()> {
    let codecs = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
    let batches: Vec<_> = codecs
        .iter()
        .zip(0..)
        .map(|(codec, i)| sample_batch(i * 20, 20, 100, *codec))
        .collect::<Result<_>>()?;
    for layout in [Layout::Trailer, Layout::Bare, Layout::BareWrongLength] {
        for crc in [FrameCrc::AsItLies, FrameCrc::LengthZero] {
            for fields in [Fields::All, Fields::WholeIn13, Fields::EntriesOnly] {
                let style = Style { layout, crc, fields };
                let root = tempfile::tempdir()?;
                let mut writer = WalWriter::create(root.path(), "old", 3, 0)?.styled(style);
                for batch in &batches {
                    writer.append(batch)?;
                }
                writer.finish()?;
                let (scan, read) = only(root.path())?;
                assert!(scan.damaged.is_empty(), "{style:?}: {:?}", scan.damaged);
                assert!(read == batches, "{style:?}");
                for frame in &scan.frames {
                    let rebuilt = frame.flags.contains(FrameFlags::REBUILT);
                    assert_eq!(rebuilt, fields == Fields::EntriesOnly);
                    let old = frame.flags.contains(FrameFlags::OLD_FRAME_CRC);
                    assert_eq!(old, crc == FrameCrc::LengthZero);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_segment_with_all_its_troubles_gives_what_is_good_in_file_order() -> Result<()> {
    let batches: Vec<_> =
        (0..40).map(|i| sample_batch(i * 5, 5, 60, Codec::None)).collect::<Result<_>>()?;
    let root = tempfile::tempdir()?;
    let mut writer = WalWriter::create(root.path(), "t", 0, 7)?;
    let mut order = writer.append_shuffled(&batches[..20], 1)?;
    writer.append_torn(&batches[20], 300)?;
    let hit = writer.append(&batches[21])?;
    writer.append_raw(b"\x7e\xca\x02\x00 garbage")?;
    for batch in &batches[22..] {
        writer.append(batch)?;
    }
    order.extend(22..40);
    let torn_at = writer.append_torn(&batches[0], 500)?.position;
    let path = writer.finish()?;
    damage(&path, hit.position + 200, 0x20)?;
    let (scan, read) = only(root.path())?;
    assert!(read.iter().eq(order.iter().map(|which| &batches[*which])));
    assert_eq!(scan.torn_at, Some(torn_at));
    // The torn frame, the damaged one and the garbage touch: the first search ends
    // at the first frame that verifies.
    let [damage] = &scan.damaged[..] else { anyhow::bail!("{:?}", scan.damaged) };
    assert_eq!(damage.start, hit.position - 300);
    assert_eq!(damage.end, hit.position + hit.len + 12);
    assert_eq!(damage.before, Some(110));
    Ok(())
}

#[test]
fn a_large_segment_of_patched_frames_is_what_the_writer_would_have_written() -> Result<()> {
    let root = tempfile::tempdir()?;
    let wire = sample_batch(0, 50, 400, Codec::None)?;
    let mut template = Template::new("big", 0, &wire)?;
    let mut writer = WalWriter::create(root.path(), "big", 0, 0)?;
    let end = writer.fill(&mut template, 1_000, 48 << 20)?;
    writer.finish()?;
    let tp = TopicPartition::new(TopicName::new("big")?, 0)?;
    let partition = partitions(root.path())?.remove(0);
    let scan = scan(FORMAT, &tp, &partition.segments[0])?;
    assert_eq!((scan.damaged.len(), scan.torn_at), (0, None));
    assert_eq!(scan.frames.len() as i64, (end - 1_000) / 50);
    let mut reader = SegmentReader::open(FORMAT, &tp, &partition.segments[0])?;
    for frame in scan.frames.iter().step_by(97) {
        let batch = reader.batch(frame)?;
        assert_eq!(batch.wire(), Some(&template.wire_at(frame.base)));
        batch.verify_crc()?;
        let fresh = FrameParts::of_batch("big", 0, &template.wire_at(frame.base), Style::CURRENT)?;
        assert!(fresh.encode() == template.frame_at(frame.base));
    }
    Ok(())
}

#[test]
fn a_legacy_frame_of_the_writer_becomes_a_batch() -> Result<()> {
    let entries = tierd::record::CanonicalRecord::from_wire(sample_batch(9, 2, 5, Codec::None)?)?;
    let entries = entries.decode()?;
    // One message of magic 0: offset, size, crc, magic, attributes, null key, "v".
    let body = [0, 0, 255, 255, 255, 255, 0, 0, 0, 1, b'v'];
    let mut set = vec![0; 8];
    set.extend(15_u32.to_be_bytes());
    set.extend(crc32fast::hash(&body).to_be_bytes());
    set.extend(body);
    let set = Bytes::from([&set[..], &set].concat());
    let root = tempfile::tempdir()?;
    let mut writer = WalWriter::create(root.path(), "t", 0, 0)?;
    writer.append_raw(&FrameParts::of_legacy("t", 0, 9, &set, entries)?.encode())?;
    let path = writer.finish()?;
    let (scan, batches) = only(root.path())?;
    assert!(scan.frames[0].flags.contains(FrameFlags::REBUILT), "{:?}", path);
    let batch = tierd::record::CanonicalRecord::from_wire(batches[0].clone())?;
    let read: Vec<_> = batch.decode()?.into_iter().map(|e| (e.offset, e.value)).collect();
    let value = Some(Bytes::from_static(b"v"));
    assert_eq!(read, [(9, value.clone()), (10, value)]);
    Ok(())
}

#[test]
fn a_broken_partition_does_not_stop_the_others() -> Result<()> {
    let root = tempfile::tempdir()?;
    for (topic, garbage) in [("a", false), ("b", true), ("c", false)] {
        let mut writer = WalWriter::create(root.path(), topic, 0, 0)?;
        if garbage {
            writer.append_raw(&[0xca, 0x7e, 2, 0, 9, 9, 9, 9])?;
        }
        writer.append(&sample_batch(0, 3, 10, Codec::None)?)?;
        writer.finish()?;
    }
    let damaged: Vec<_> = partitions(root.path())?
        .iter()
        .map(|p| Ok(scan(FORMAT, &p.tp, &p.segments[0])?.damaged.len()))
        .collect::<Result<_>>()?;
    assert_eq!(damaged, [0, 1, 0]);
    // A frame of another partition, as a restored or misplaced file holds it.
    fs::rename(root.path().join("a/0/wal_0_0.log"), root.path().join("c/0/wal_0_1.log"))?;
    let c = partitions(root.path())?.pop().context("no partition")?;
    let scan = scan(FORMAT, &c.tp, &c.segments[1])?;
    assert!(scan.frames.is_empty());
    assert!(scan.damaged[0].why.contains("topic \"a\""), "{:?}", scan.damaged);
    Ok(())
}
