//! Owns asking one archive's index: conditions in, offsets out. Blocking.
//!
//! Documents lie in offset order and segments follow one another, so hits come in
//! order without sorting, and a search ends as soon as it has enough. Times and
//! offsets are compared in the columns of each document that the terms found; no
//! scores, no stored documents.

use std::collections::VecDeque;
use std::ops::Bound;

use tantivy::index::SegmentReader;
use tantivy::query::{
    AllQuery, BooleanQuery, EnableScoring, InvertedIndexRangeQuery, Query, TermQuery,
};
use tantivy::schema::{Field, IndexRecordOption, Schema};
use tantivy::{DocSet, Index, TERMINATED, TantivyError, Term};
use tokio_util::sync::CancellationToken;

use super::files::IndexFiles;
use super::query::{self, Asked};
use super::types::Order;
use crate::archive::{
    HEADER_FIELD, KEY_FIELD, OFFSET_FIELD, PRODUCER_FIELD, TERM_BYTES_MAX, TERM_PREFIX_BYTES,
    TIMESTAMP_FIELD, header_name_prefix, header_term, key_term, skipped_values,
};
use crate::record::{OffsetRange, Selection};

/// Documents looked at between two looks at whether anyone still waits.
const DOCUMENTS_BETWEEN_LOOKS: u32 = 4096;

/// A record in an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) offset: i64,
    pub(super) timestamp: i64,
}

/// What is looked for in one archive.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) selection: Selection,
    pub(super) asked: Option<Asked>,
    /// Only these offsets count.
    pub(super) bounds: OffsetRange,
    pub(super) order: Order,
    /// Hits that are enough.
    pub(super) limit: usize,
}

impl Job {
    /// Whether what the index finds must be compared with the records: terms longer
    /// than the index keeps are found by a hash.
    pub(super) fn needs_comparing(&self) -> bool {
        let Selection { key, key_prefix, headers, .. } = &self.selection;
        key.as_ref().is_some_and(|key| key.len() >= TERM_BYTES_MAX)
            || key_prefix.as_ref().is_some_and(|prefix| prefix.len() > TERM_PREFIX_BYTES)
            || headers.iter().any(|header| match &header.value {
                Some(value) => header_term(&header.name, Some(value)).len() >= TERM_BYTES_MAX,
                None => header_name_prefix(&header.name).len() >= TERM_PREFIX_BYTES,
            })
    }
}

/// What an index answers.
#[derive(Debug)]
pub(super) enum Searched {
    /// Records, in order, and how many values are not in the index.
    Found(Vec<Found>, u64),
    /// It cannot answer the query, and why.
    NotSearchable(String),
}

/// The records that the index in `files` finds.
pub(super) fn search(
    files: &IndexFiles,
    job: &Job,
    cancelled: &CancellationToken,
) -> Result<Searched, TantivyError> {
    let index = Index::open(files.clone())?;
    let asked = job.asked.as_ref().map(|asked| query::compile(asked, &index.schema()));
    let asked = match asked.transpose() {
        Ok(asked) => asked,
        Err(why) => return Ok(Searched::NotSearchable(why)),
    };
    let lacks_values = job.asked.as_ref().is_some_and(|asked| asked.values);
    let skipped =
        if lacks_values { skipped_values(index.load_metas()?.payload.as_deref()) } else { 0 };
    let is_asked = asked.is_some();
    let query = conditions(&job.selection, asked, &index.schema())?;
    let mut segments = index.searchable_segments()?;
    if job.order == Order::Newest {
        segments.reverse();
    }
    let mut found = Vec::new();
    for segment in segments {
        let reader = SegmentReader::open(&segment)?;
        let left = job.limit - found.len();
        match in_segment(&reader, &*query, job, left, cancelled) {
            Ok(more) => found.extend(more),
            // What Tantivy sees only when it comes to the columns.
            Err(TantivyError::InvalidArgument(why) | TantivyError::SchemaError(why))
                if is_asked =>
            {
                return Ok(Searched::NotSearchable(why));
            }
            Err(error) => return Err(error),
        }
        if found.len() >= job.limit {
            break;
        }
    }
    Ok(Searched::Found(found, skipped))
}

/// The query and all conditions that terms stand for; times and offsets are compared
/// later.
fn conditions(
    selection: &Selection,
    asked: Option<Box<dyn Query>>,
    schema: &Schema,
) -> Result<Box<dyn Query>, TantivyError> {
    let mut all: Vec<Box<dyn Query>> = asked.into_iter().collect();
    if let Some(key) = &selection.key {
        all.push(exact(schema.get_field(KEY_FIELD)?, &key_term(key)));
    }
    if let Some(prefix) = &selection.key_prefix {
        let exact = &prefix[..prefix.len().min(TERM_PREFIX_BYTES)];
        all.push(begins_with(schema.get_field(KEY_FIELD)?, exact));
    }
    for header in &selection.headers {
        let field = schema.get_field(HEADER_FIELD)?;
        all.push(match &header.value {
            Some(value) => exact(field, &header_term(&header.name, Some(value))),
            None => begins_with(field, &header_name_prefix(&header.name)),
        });
    }
    if let Some(producer_id) = selection.producer_id {
        let term = Term::from_field_i64(schema.get_field(PRODUCER_FIELD)?, producer_id);
        all.push(Box::new(TermQuery::new(term, IndexRecordOption::Basic)));
    }
    Ok(match all.len() {
        0 => Box::new(AllQuery),
        1 => all.remove(0),
        _ => Box::new(BooleanQuery::intersection(all)),
    })
}

fn exact(field: Field, term: &[u8]) -> Box<dyn Query> {
    Box::new(TermQuery::new(Term::from_field_bytes(field, term), IndexRecordOption::Basic))
}

fn begins_with(field: Field, prefix: &[u8]) -> Box<dyn Query> {
    let term = |bytes: &[u8]| Term::from_field_bytes(field, bytes);
    let end = after_prefix(prefix);
    let end = end.map_or(Bound::Unbounded, |end| Bound::Excluded(term(&end)));
    Box::new(InvertedIndexRangeQuery::new(Bound::Included(term(prefix)), end))
}

/// The least bytes above all that begin with `prefix`; `None` when there are none.
fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// At most `limit` records of one segment, in order.
fn in_segment(
    reader: &SegmentReader,
    query: &dyn Query,
    job: &Job,
    limit: usize,
    cancelled: &CancellationToken,
) -> Result<Vec<Found>, TantivyError> {
    let offsets = reader.fast_fields().i64(OFFSET_FIELD)?;
    let timestamps = reader.fast_fields().i64(TIMESTAMP_FIELD)?;
    let offset_of = |doc| offsets.first(doc).unwrap_or(-1);
    let first = first_where(reader.max_doc(), |doc| offset_of(doc) >= job.bounds.base());
    let weight = query.weight(EnableScoring::disabled_from_schema(reader.schema()))?;
    let mut documents = weight.scorer(reader, 1.0)?;
    let mut found = VecDeque::new();
    let mut looked = 0;
    let mut doc = documents.doc();
    if doc < first {
        doc = documents.seek(first);
    }
    while doc != TERMINATED {
        looked += 1;
        if looked % DOCUMENTS_BETWEEN_LOOKS == 0 && cancelled.is_cancelled() {
            return Err(TantivyError::InternalError("the search was given up".to_owned()));
        }
        let offset = offset_of(doc);
        if offset > job.bounds.last() {
            break;
        }
        let timestamp = timestamps.first(doc).unwrap_or(-1);
        if job.selection.admits_time(timestamp) {
            match job.order {
                Order::Oldest if found.len() == limit => break,
                Order::Newest if found.len() == limit => drop(found.pop_front()),
                _ => {}
            }
            found.push_back(Found { offset, timestamp });
        }
        doc = documents.advance();
    }
    Ok(match job.order {
        Order::Oldest => found.into(),
        Order::Newest => found.into_iter().rev().collect(),
    })
}

/// The first of `count` documents of which `is` holds, where it holds for all after.
fn first_where(count: u32, is: impl Fn(u32) -> bool) -> u32 {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if is(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        assert_eq!(after_prefix(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(after_prefix(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(after_prefix(b"\xff"), None);
        assert_eq!(after_prefix(b""), None);
    }

    #[test]
    fn the_first_of_a_border_is_found() {
        for border in 0..=9 {
            assert_eq!(first_where(9, |doc| doc >= border), border);
        }
    }
}
