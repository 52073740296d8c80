//! Random edits against a plain list, on trees made high by small limits.

use proptest::prelude::*;

use super::*;
use crate::catalog::testing::{beside, entry, gap, partition};
use crate::record::OffsetRange;
use crate::store::Store;

const SMALL: Limits = Limits {
    leaf_bytes: 1_024,
    inner_bytes: 700,
    root_refs: 4,
    inline_entries: 8,
    inline_gaps: 4,
    keep_entries: 3,
    keep_gaps: 2,
};

/// A tree with what it should hold.
struct Tree {
    store: Store,
    limits: Limits,
    root: Root,
    number: u64,
    log_start: i64,
    model: Vec<Item>,
    written: Vec<usize>,
}

impl Tree {
    fn new(limits: Limits) -> Self {
        Self {
            store: Store::open("memory:").unwrap(),
            limits,
            root: Root::default(),
            number: 1,
            log_start: 0,
            model: Vec::new(),
            written: Vec::new(),
        }
    }

    /// A new cache each time, so that every page is read and decoded again.
    fn pages(&self) -> Pages {
        Pages::new(self.store.clone())
    }

    async fn edit(&mut self, add: Vec<Item>, remove: Vec<Item>) -> Result<(), CatalogError> {
        let (pages, of) = (self.pages(), partition());
        let editor = Editor::new(&pages, &of, self.number, self.log_start, self.limits);
        let (root, made) = editor.edit(self.root.clone(), add.clone(), remove.clone()).await?;
        self.written.push(made.iter().map(|page| page.bytes.len()).sum());
        for page in made {
            let most = match page.page {
                Page::Leaf(_) => self.limits.leaf_bytes,
                Page::Inner(_) => self.limits.inner_bytes,
            };
            assert!(
                page.bytes.len() <= most,
                "{} bytes at height {}",
                page.bytes.len(),
                page.at.height
            );
            assert_eq!(page.at.built_for, self.number);
            self.store.put(&page.key, page.bytes).await.unwrap();
        }
        self.root = root;
        self.number += 1;
        self.model.retain(|item| !remove.contains(item));
        self.model.extend(add);
        sort(&mut self.model);
        Ok(())
    }

    /// Everything the tree holds, in the order it is found, and its height.
    async fn walk(&self) -> (Vec<Item>, u8) {
        let pages = self.pages();
        let mut found = Vec::new();
        let mut stack: Vec<PageRef> = self.root.pages.iter().rev().cloned().collect();
        let height = self.root.pages.first().map_or(0, |page| page.height + 1);
        while let Some(at) = stack.pop() {
            match Page::clone(&*pages.get(&partition(), &at).await.unwrap()) {
                Page::Leaf(items) => found.extend(items_of(items)),
                Page::Inner(refs) => stack.extend(refs.into_iter().rev()),
            }
        }
        found.extend(items_of(self.root.recent.clone()));
        (found, height)
    }

    /// That the tree holds what the model does and keeps its limits.
    async fn check(&self) {
        let (mut found, _) = self.walk().await;
        sort(&mut found);
        let kept =
            |item: &&Item| !matches!(item, Item::Gap(gap) if gap.range.last() < self.log_start);
        let model: Vec<&Item> = self.model.iter().filter(kept).collect();
        let found: Vec<&Item> = found.iter().filter(kept).collect();
        assert_eq!(found, model);
        assert!(self.root.pages.len() <= self.limits.root_refs);
        assert!(self.root.recent.entries.len() <= self.limits.inline_entries);
        assert!(self.root.recent.gaps.len() <= self.limits.inline_gaps);
        let mut tiles: Vec<_> = self.root.pages.iter().filter_map(PageRef::tile).collect();
        tiles.extend(self.root.recent.tiles());
        assert_eq!(crate::catalog::tiling::end(&tiles, self.log_start), Ok(self.end()));
    }

    fn end(&self) -> i64 {
        let tiles = self.model.iter().filter_map(|item| match item {
            Item::Entry(entry) => entry.tile(),
            Item::Gap(gap) => Some(gap.range),
        });
        tiles.map(OffsetRange::end).max().unwrap_or(0).max(self.log_start)
    }

    fn pick(&self, at: usize, which: impl Fn(&Item) -> bool) -> Option<usize> {
        let all: Vec<usize> = (0..self.model.len()).filter(|i| which(&self.model[*i])).collect();
        (!all.is_empty()).then(|| all[at % all.len()])
    }
}

fn tiles(item: &Item) -> bool {
    matches!(item, Item::Entry(entry) if entry.summary.tiles)
}

#[derive(Clone, Debug)]
enum Step {
    Append { count: usize, len: i64 },
    Gap { len: i64 },
    Beside { at: i64, len: i64 },
    Fill { which: usize, skip: i64, len: i64 },
    Merge { which: usize, count: usize },
    Forget { which: usize },
    Retain { at: i64 },
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..12usize, 1..50i64).prop_map(|(count, len)| Step::Append { count, len }),
        2 => (1..50i64).prop_map(|len| Step::Gap { len }),
        2 => (0..5000i64, 1..200i64).prop_map(|(at, len)| Step::Beside { at, len }),
        2 => (any::<usize>(), 0..40i64, 1..40i64)
            .prop_map(|(which, skip, len)| Step::Fill { which, skip, len }),
        2 => (any::<usize>(), 2..30usize).prop_map(|(which, count)| Step::Merge { which, count }),
        1 => any::<usize>().prop_map(|which| Step::Forget { which }),
        1 => (0..300i64).prop_map(|at| Step::Retain { at }),
    ]
}

async fn take_step(tree: &mut Tree, step: Step) {
    let (number, end) = (tree.number, tree.end());
    match step {
        Step::Append { count, len } => {
            let at = |n: usize| end + n as i64 * len;
            let add = (0..count).map(|n| Item::Entry(entry(number, at(n), at(n) + len - 1)));
            tree.edit(add.collect(), vec![]).await.unwrap();
        }
        Step::Gap { len } => {
            tree.edit(vec![Item::Gap(gap(end, end + len - 1))], vec![]).await.unwrap();
        }
        Step::Beside { at, len } => {
            let base = at % (end + 1);
            tree.edit(vec![Item::Entry(beside(number, base, base + len))], vec![]).await.unwrap();
        }
        Step::Fill { which, skip, len } => {
            let known =
                |item: &Item| matches!(item, Item::Gap(gap) if gap.range.last() >= tree.log_start);
            let Some(at) = tree.pick(which, known) else { return };
            let old = tree.model[at].clone();
            let Item::Gap(hole) = &old else { unreachable!() };
            let base = (hole.range.base() + skip).min(hole.range.last());
            let last = (base + len).min(hole.range.last());
            let mut add = vec![Item::Entry(entry(number, base, last))];
            if hole.range.base() < base {
                add.push(Item::Gap(gap(hole.range.base(), base - 1)));
            }
            if last < hole.range.last() {
                add.push(Item::Gap(gap(last + 1, hole.range.last())));
            }
            tree.edit(add, vec![old]).await.unwrap();
        }
        Step::Merge { which, count } => {
            let Some(at) = tree.pick(which, tiles) else { return };
            let mut inputs = vec![tree.model[at].clone()];
            for item in &tree.model[at + 1..] {
                match item {
                    Item::Entry(entry) if entry.summary.tiles && inputs.len() < count => {
                        inputs.push(item.clone());
                    }
                    Item::Entry(entry) if !entry.summary.tiles => {}
                    _ => break,
                }
            }
            let range = |item: &Item| match item {
                Item::Entry(entry) => entry.summary.range,
                Item::Gap(gap) => gap.range,
            };
            let (base, last) = (range(&inputs[0]).base(), range(inputs.last().unwrap()).last());
            tree.edit(vec![Item::Entry(entry(number, base, last))], inputs).await.unwrap();
        }
        Step::Forget { which } => {
            let late = |item: &Item| matches!(item, Item::Entry(entry) if !entry.summary.tiles);
            let Some(at) = tree.pick(which, late) else { return };
            let old = tree.model[at].clone();
            tree.edit(vec![], vec![old]).await.unwrap();
        }
        Step::Retain { at } => {
            tree.log_start = tree.log_start.max(at.min(end));
            let old = tree.model.iter().filter(|item| match item {
                Item::Entry(entry) => entry.summary.range.last() < tree.log_start,
                Item::Gap(_) => false,
            });
            let old = old.cloned().collect();
            tree.edit(vec![], old).await.unwrap();
            let log_start = tree.log_start;
            tree.model
                .retain(|item| !matches!(item, Item::Gap(gap) if gap.range.last() < log_start));
        }
    }
}

#[test]
fn a_log_start_that_drops_the_last_gaps_leaves_a_tree_that_ends_there() {
    block_on(async {
        let mut tree = Tree::new(SMALL);
        for _ in 0..5 {
            take_step(&mut tree, Step::Gap { len: 1 }).await;
        }
        take_step(&mut tree, Step::Retain { at: 5 }).await;
        tree.check().await;
    });
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_sequence_of_edits_leaves_what_a_list_would(steps in prop::collection::vec(any_step(), 1..60)) {
        block_on(async {
            let mut tree = Tree::new(SMALL);
            for step in steps {
                take_step(&mut tree, step).await;
                tree.check().await;
            }
        });
    }
}

#[tokio::test]
async fn a_tree_grows_high_and_shrinks_again() {
    let mut tree = Tree::new(SMALL);
    for n in 0..1_500 {
        tree.edit(vec![Item::Entry(entry(n + 1, n as i64, n as i64))], vec![]).await.unwrap();
    }
    tree.check().await;
    let (_, height) = tree.walk().await;
    assert!(height >= 4, "only {height} high");
    // From the middle outwards, so that pages empty on both sides.
    tree.log_start = 1_500;
    while !tree.model.is_empty() {
        let middle = tree.model.len() / 2;
        let old: Vec<Item> =
            tree.model.iter().skip(middle.saturating_sub(20)).take(40).cloned().collect();
        tree.edit(vec![], old).await.unwrap();
        tree.check().await;
    }
    assert!(tree.root.pages.is_empty());
}

#[tokio::test]
async fn appending_writes_full_pages_and_little_else() {
    let mut tree = Tree::new(Limits::default());
    for n in 0..10_000 {
        tree.edit(vec![Item::Entry(entry(n + 1, n as i64, n as i64))], vec![]).await.unwrap();
    }
    let (found, height) = tree.walk().await;
    assert_eq!(found.len(), 10_000);
    assert_eq!(height, 2);
    let total: usize = tree.written.iter().sum();
    let leaves = 10_000 * ENTRY_BYTES;
    assert!(total < leaves * 2, "{total} bytes of pages for {leaves} bytes of entries");
}

#[tokio::test]
async fn what_is_not_there_cannot_be_removed() {
    let mut tree = Tree::new(SMALL);
    let add = (0..100).map(|n| Item::Entry(entry(1, n * 10, n * 10 + 9))).collect();
    tree.edit(add, vec![]).await.unwrap();
    for absent in [Item::Entry(entry(2, 100, 109)), Item::Gap(gap(100, 109))] {
        let error = tree.edit(vec![], vec![absent]).await.unwrap_err();
        assert!(matches!(error, CatalogError::NotListed { .. }), "{error}");
    }
    tree.check().await;
}

#[tokio::test]
async fn a_hole_or_an_overlap_in_the_middle_of_the_tree_is_refused() {
    let mut tree = Tree::new(SMALL);
    let add = (0..100).map(|n| Item::Entry(entry(1, n * 10, n * 10 + 9))).collect();
    tree.edit(add, vec![]).await.unwrap();
    for at in [0, 50, 199, 200, 207, 500] {
        let error = tree.edit(vec![Item::Entry(entry(2, at, at + 3))], vec![]).await.unwrap_err();
        assert!(matches!(error, CatalogError::Overlap { .. }), "{error}");
    }
    // Removing one inside a leaf is seen there; at the border of two pages, by
    // the page or the manifest above them.
    let mut seen = 0;
    for n in 1..80 {
        let before = tree.root.clone();
        let old = Item::Entry(entry(1, n * 10, n * 10 + 9));
        match tree.edit(vec![], vec![old]).await {
            Err(CatalogError::Hole { range }) => {
                assert_eq!((range.base(), range.last()), (n * 10, n * 10 + 9));
                seen += 1;
            }
            Err(other) => panic!("{other}"),
            Ok(()) => {
                let mut tiles: Vec<_> = tree.root.pages.iter().filter_map(PageRef::tile).collect();
                tiles.extend(tree.root.recent.tiles());
                assert!(crate::catalog::tiling::end(&tiles, 0).is_err(), "hole at {n} not seen");
                tree.root = before;
            }
        }
    }
    assert!(seen > 40);
}
