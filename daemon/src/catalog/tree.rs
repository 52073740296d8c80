//! Owns the tree of a manifest: how an edit becomes new pages and a new root.
//!
//! ```text
//!  root:   references (at most 32, one height)  |  recent entries and gaps (at most 128 and 64)
//!             |                                 spill, oldest first, into leaves
//!          inner pages -> ... -> leaves
//! ```
//!
//! Pages are never changed: an edit writes the leaves it touches and the pages
//! above them anew, under names of the new manifest, and leaves all others be.
//! An append touches the root alone, or the root, one new leaf and the right
//! edge when it spills. Inner pages are kept at half the size of leaves: they
//! are rewritten more often than read from the store.
//!
//! Everything is ordered by first offset. An item below what the root tiles goes
//! to the last page that begins at or before it, all others to the root. Only the first offset routes, so that an item is looked for in
//! every page that may hold it; items that share a first offset (archives that
//! tile nothing) may lie on both sides of a border.
//!
//! Does not own: sending pages to the store, and whether the whole tiles.

use std::collections::HashMap;

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::record::OffsetRange;
use crate::store::PartitionKey;

use super::entry::{ArchiveEntry, ENTRY_BYTES, GAP_BYTES, Gap, Items, order};
use super::error::CatalogError;
use super::manifest::{INLINE_ENTRIES_MAX, INLINE_GAPS_MAX, ROOT_REFS_MAX};
use super::page::{HEIGHT_MAX, Made, PAGE_BYTES_MAX, Page, PageRef, REF_BYTES};
use super::pages::Pages;

/// When pages are cut and joined. One set of values; tests make trees high with
/// smaller ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Most bytes of a leaf.
    pub(super) leaf_bytes: usize,
    /// Most bytes of an inner page: about 56 references, so that a root of 32
    /// reaches 100,000 pages with two pages to rewrite.
    pub(super) inner_bytes: usize,
    /// Most references in the root.
    pub(super) root_refs: usize,
    /// Most entries in the root.
    pub(super) inline_entries: usize,
    /// Most gaps in the root.
    pub(super) inline_gaps: usize,
    /// Entries left in the root by a spill. 80 go at a time, a leaf of 14 KiB.
    pub(super) keep_entries: usize,
    /// Gaps left in the root by a spill.
    pub(super) keep_gaps: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            leaf_bytes: PAGE_BYTES_MAX,
            inner_bytes: PAGE_BYTES_MAX / 2,
            root_refs: ROOT_REFS_MAX,
            inline_entries: INLINE_ENTRIES_MAX,
            inline_gaps: INLINE_GAPS_MAX,
            keep_entries: 48,
            keep_gaps: 16,
        }
    }
}

/// An entry or a gap.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all items are entries")]
pub(super) enum Item {
    Entry(ArchiveEntry),
    Gap(Gap),
}

impl Item {
    fn base(&self) -> i64 {
        match self {
            Self::Entry(entry) => entry.summary.range.base(),
            Self::Gap(gap) => gap.range.base(),
        }
    }

    fn encoded_len(&self) -> usize {
        match self {
            Self::Entry(_) => ENTRY_BYTES,
            Self::Gap(_) => GAP_BYTES,
        }
    }
}

/// The part of a manifest that is a tree.
#[derive(Clone, Debug, Default)]
pub(super) struct Root {
    pub(super) pages: Vec<PageRef>,
    pub(super) recent: Items,
}

/// One edit of one tree.
pub(super) struct Editor<'a> {
    pages: &'a Pages,
    of: &'a PartitionKey,
    number: u64,
    log_start: i64,
    limits: Limits,
    made: HashMap<[u8; 16], Made>,
    /// Items taken out of pages so far.
    taken: Vec<Item>,
}

impl<'a> Editor<'a> {
    /// An editor for manifest `number`, whose log starts at `log_start`.
    pub(super) fn new(
        pages: &'a Pages,
        of: &'a PartitionKey,
        number: u64,
        log_start: i64,
        limits: Limits,
    ) -> Self {
        let (made, taken) = (HashMap::new(), Vec::new());
        Self { pages, of, number, log_start, limits, made, taken }
    }

    /// Takes `remove` out of the tree and puts `add` in. Returns the new root and
    /// the pages that must be in the store before a manifest may reference them.
    pub(super) async fn edit(
        mut self,
        root: Root,
        add: Vec<Item>,
        remove: Vec<Item>,
    ) -> Result<(Root, Vec<Made>), CatalogError> {
        let border = border(&root);
        let Root { mut pages, mut recent } = root;
        let in_tree: Vec<Item> =
            remove.into_iter().filter(|item| !take(&mut recent, item)).collect();
        let (mut below, above): (Vec<_>, Vec<_>) =
            add.into_iter().partition(|item| border.is_some_and(|border| item.base() < border));
        let mut inline = items_of(recent);
        inline.extend(above);
        self.drop_old_gaps(&mut inline);
        sort(&mut inline);
        let kept = inline.split_off(self.spilled(&inline));
        below.extend(inline);
        let recent = items_from(kept);

        if !below.is_empty() || !in_tree.is_empty() {
            pages = self.level(pages, below, &in_tree).await?;
        }
        if let Some(missing) = in_tree.iter().find(|item| !self.taken.contains(item)) {
            return Err(absent(missing));
        }
        while pages.len() > self.limits.root_refs {
            pages = self.inner_pages(pages, true)?;
        }
        while let [only] = pages.as_slice()
            && only.height > 0
            && let Page::Inner(below) = self.get(only).await?
            && below.len() <= self.limits.root_refs / 2
        {
            self.made.remove(&only.digest);
            pages = below;
        }
        Ok((Root { pages, recent }, self.made.into_values().collect()))
    }

    /// How many of the root's items, from the oldest, go to the pages.
    fn spilled(&self, inline: &[Item]) -> usize {
        let mut entries = inline.iter().filter(|item| matches!(item, Item::Entry(_))).count();
        let mut gaps = inline.len() - entries;
        if entries <= self.limits.inline_entries && gaps <= self.limits.inline_gaps {
            return 0;
        }
        let keeps =
            |entries, gaps| entries <= self.limits.keep_entries && gaps <= self.limits.keep_gaps;
        let mut spilled = 0;
        while !keeps(entries, gaps) {
            match inline[spilled] {
                Item::Entry(_) => entries -= 1,
                Item::Gap(_) => gaps -= 1,
            }
            spilled += 1;
        }
        spilled
    }

    /// Edits the pages `refs`, which are neighbours of one height, and returns
    /// what stands in their place.
    fn level<'s>(
        &'s mut self,
        refs: Vec<PageRef>,
        add: Vec<Item>,
        remove: &'s [Item],
    ) -> BoxFuture<'s, Result<Vec<PageRef>, CatalogError>> {
        async move {
            if refs.is_empty() {
                return self.leaves(add);
            }
            let mut adds: Vec<Vec<Item>> = vec![Vec::new(); refs.len()];
            for item in add {
                let after = refs.partition_point(|page| page.reach.base() <= item.base());
                adds[after.saturating_sub(1)].push(item);
            }
            let mut removes: Vec<Vec<Item>> = vec![Vec::new(); refs.len()];
            for item in remove {
                let first = refs.partition_point(|page| page.reach.base() < item.base());
                let after = refs.partition_point(|page| page.reach.base() <= item.base());
                for of_page in &mut removes[first.saturating_sub(1)..after] {
                    of_page.push(item.clone());
                }
            }
            let mut edited = Vec::with_capacity(refs.len() + 1);
            for ((at, add), remove) in refs.into_iter().zip(adds).zip(removes) {
                if add.is_empty() && remove.is_empty() {
                    edited.push(at);
                } else {
                    edited.extend(self.page(at, add, &remove).await?);
                }
            }
            self.join_small(edited).await
        }
        .boxed()
    }

    /// Edits one page and returns what stands in its place: itself where nothing
    /// changed, nothing where it is empty, several where it is cut.
    async fn page(
        &mut self,
        at: PageRef,
        mut add: Vec<Item>,
        remove: &[Item],
    ) -> Result<Vec<PageRef>, CatalogError> {
        match self.get(&at).await? {
            Page::Inner(refs) => {
                let edited = self.level(refs.clone(), add, remove).await?;
                if edited == refs {
                    return Ok(vec![at]);
                }
                let settled = refs.len() - 1;
                let appended = edited.get(..settled) == refs.get(..settled);
                self.inner_pages(edited, appended)
            }
            Page::Leaf(mut items) => {
                let before = self.taken.len();
                for item in remove {
                    if take(&mut items, item) {
                        self.taken.push(item.clone());
                    }
                }
                let removed = self.taken.len() > before;
                if !removed && add.is_empty() {
                    return Ok(vec![at]);
                }
                let last = items.entries.last().map(|entry| entry.summary.range.base());
                let last = last.max(items.gaps.last().map(|gap| gap.range.base()));
                let behind = add.iter().all(|item| Some(item.base()) > last);
                if !removed && behind && at.length as usize >= self.limits.leaf_bytes / 2 {
                    // What is appended to a full leaf does not rewrite it.
                    let mut pages = vec![at];
                    pages.extend(self.leaves(add)?);
                    return Ok(pages);
                }
                add.extend(items_of(items));
                self.drop_old_gaps(&mut add);
                self.leaves(add)
            }
        }
    }

    /// Joins pages of this edit that became small to a neighbour.
    async fn join_small(&mut self, mut refs: Vec<PageRef>) -> Result<Vec<PageRef>, CatalogError> {
        let mut at = 0;
        while at < refs.len() {
            let most = match refs[at].height {
                0 => self.limits.leaf_bytes,
                _ => self.limits.inner_bytes,
            };
            let len =
                |index: usize| refs.get(index).map_or(usize::MAX, |page| page.length as usize);
            let small = refs[at].built_for == self.number && len(at) < most / 4;
            let fits = |index: usize| len(index).saturating_add(len(at)) <= most * 3 / 4;
            let left = match at.checked_sub(1) {
                Some(left) if small && fits(left) => left,
                _ if small && fits(at + 1) => at,
                _ => {
                    at += 1;
                    continue;
                }
            };
            let (one, two) = (refs[left].clone(), refs[left + 1].clone());
            let halves = (self.get(&one).await?, self.get(&two).await?);
            // Before the whole is made: it may equal one half, where the other
            // held nothing but old gaps.
            self.made.remove(&one.digest);
            self.made.remove(&two.digest);
            let joined = match halves {
                (Page::Leaf(one), Page::Leaf(two)) => {
                    let mut items = items_of(one);
                    items.extend(items_of(two));
                    self.drop_old_gaps(&mut items);
                    self.leaves(items)?
                }
                (Page::Inner(mut one), Page::Inner(two)) => {
                    one.extend(two);
                    self.inner_pages(one, false)?
                }
                _ => {
                    return Err(CatalogError::defect(
                        self.of,
                        "pages of two heights are neighbours",
                    ));
                }
            };
            refs.splice(left..left + 2, joined);
            at = left;
        }
        Ok(refs)
    }

    /// Makes leaves of `items`, as even as can be.
    fn leaves(&mut self, mut items: Vec<Item>) -> Result<Vec<PageRef>, CatalogError> {
        sort(&mut items);
        let room = self.limits.leaf_bytes - Page::overhead(self.of) - 4;
        let total: usize = items.iter().map(Item::encoded_len).sum();
        let share = total.div_ceil(total.div_ceil(room).max(1));
        let mut pages = Vec::new();
        let (mut leaf, mut len) = (Vec::new(), 0);
        for item in items {
            let more = item.encoded_len();
            if !leaf.is_empty() && (len >= share || len + more > room) {
                pages.extend(self.make(Page::Leaf(items_from(std::mem::take(&mut leaf))))?);
                len = 0;
            }
            len += more;
            leaf.push(item);
        }
        pages.extend(self.make(Page::Leaf(items_from(leaf)))?);
        Ok(pages)
    }

    /// Makes inner pages of `refs`: full ones where the tree grows at its end,
    /// since nothing will come between, else as even as can be.
    fn inner_pages(
        &mut self,
        refs: Vec<PageRef>,
        appended: bool,
    ) -> Result<Vec<PageRef>, CatalogError> {
        let room = (self.limits.inner_bytes - Page::overhead(self.of)) / REF_BYTES;
        let pages = refs.len().div_ceil(room).max(1);
        let share = if appended { room } else { refs.len().div_ceil(pages) };
        let mut made = Vec::new();
        for refs in refs.chunks(share.max(1)) {
            made.extend(self.make(Page::Inner(refs.to_vec()))?);
        }
        Ok(made)
    }

    fn make(&mut self, page: Page) -> Result<Option<PageRef>, CatalogError> {
        page.check_tiling(self.log_start)?;
        let Some(made) = page.make(self.of, self.number) else { return Ok(None) };
        if made.at.height > HEIGHT_MAX {
            return Err(CatalogError::defect(self.of, "the tree is higher than can be"));
        }
        let at = made.at.clone();
        self.made.insert(at.digest, made);
        Ok(Some(at))
    }

    async fn get(&self, at: &PageRef) -> Result<Page, CatalogError> {
        match self.made.get(&at.digest) {
            Some(made) => Ok(made.page.clone()),
            None => Ok(Page::clone(&*self.pages.get(self.of, at).await?)),
        }
    }

    /// Gaps below the log start say nothing to anyone.
    fn drop_old_gaps(&self, items: &mut Vec<Item>) {
        items.retain(|item| !matches!(item, Item::Gap(gap) if gap.range.last() < self.log_start));
    }
}

/// The offset from which new items stay in the root, `None` where all do: what
/// tiles in the pages ends before what tiles in the root begins, and a new tile
/// must go where that stays so.
fn border(root: &Root) -> Option<i64> {
    if root.pages.is_empty() {
        return None;
    }
    let recent = root.recent.tiles().first().map(|tile| tile.base());
    recent.or_else(|| root.pages.iter().filter_map(PageRef::tile).map(OffsetRange::end).max())
}

fn take(items: &mut Items, item: &Item) -> bool {
    fn out<T: PartialEq>(from: &mut Vec<T>, what: &T) -> bool {
        let found = from.iter().position(|one| one == what);
        found.map(|at| from.remove(at)).is_some()
    }
    match item {
        Item::Entry(entry) => out(&mut items.entries, entry),
        Item::Gap(gap) => out(&mut items.gaps, gap),
    }
}

fn items_of(items: Items) -> Vec<Item> {
    let gaps = items.gaps.into_iter().map(Item::Gap);
    items.entries.into_iter().map(Item::Entry).chain(gaps).collect()
}

fn items_from(all: Vec<Item>) -> Items {
    let mut items = Items::default();
    for item in all {
        match item {
            Item::Entry(entry) => items.entries.push(entry),
            Item::Gap(gap) => items.gaps.push(gap),
        }
    }
    items
}

/// By first offset; among equals entries in their order, then the gap.
fn sort(items: &mut [Item]) {
    items.sort_by(|a, b| {
        a.base().cmp(&b.base()).then_with(|| match (a, b) {
            (Item::Entry(a), Item::Entry(b)) => order(a).cmp(&order(b)),
            (Item::Entry(_), Item::Gap(_)) => std::cmp::Ordering::Less,
            (Item::Gap(_), Item::Entry(_)) => std::cmp::Ordering::Greater,
            (Item::Gap(a), Item::Gap(b)) => a.cmp(b),
        })
    });
}

fn absent(item: &Item) -> CatalogError {
    let what = match item {
        Item::Entry(entry) => entry.key().to_string(),
        Item::Gap(gap) => format!("the gap {}", gap.range),
    };
    CatalogError::NotListed { what }
}

#[cfg(test)]
mod tests;
