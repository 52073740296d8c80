//! Owns queries in Tantivy's language: what of it is taken, what it means, and how
//! far it may go.
//!
//! ```text
//!  value:paid                       a word of a text
//!  value.city:Berlin AND value.amount:>100
//!  "not paid" OR producer:7         a phrase; the field is `value` where none is named
//!  value.at:[2024-03-01T00:00:00Z TO 2024-04-01T00:00:00Z}
//!  offset:[100 TO 200} AND NOT value.state: IN [open new]
//! ```
//!
//! An answer is exact or it says what it lacks. So some of the language is refused,
//! and some is put differently before Tantivy compiles it:
//!
//! | in the query | why | becomes |
//! |---|---|---|
//! | regular expression, phrase with a prefix | Tantivy tries every word, or the first fifty only | refused |
//! | `key:`, `header:` | the index keeps long ones as hashes | refused: conditions of their own compare them |
//! | no word, as `value:"€"` | Tantivy drops the condition, and finds more | refused |
//! | JSON without a field | Tantivy finds nothing | refused |
//! | `[1 TO 2.5]` in JSON | Tantivy takes bounds of one type only | `{0.9999999999999999 TO 2.5]` |
//! | `[a TO 2.5]` in JSON, or numbers from 2^53 on | the same | two conditions, which two items of a list may meet |
//! | `IN [Rom Bonn]` | Tantivy does not cut the members into words | one condition each |
//! | range without bounds | Tantivy drops it | refused |
//! | nothing but `NOT` | Tantivy takes it from nothing | from all records |

use std::sync::LazyLock;

use tantivy::query::{EnableScoring, Query, QueryParser};
use tantivy::query_grammar::{
    Delimiter, Occur, UserInputAst, UserInputBound, UserInputLeaf, UserInputLiteral, parse_query,
};
use tantivy::schema::{FieldType, Schema};

use super::error::SearchError;
use crate::archive::{
    HEADER_FIELD, IndexLevel, KEY_FIELD, OFFSET_FIELD, PRODUCER_FIELD, TIMESTAMP_FIELD,
    VALUE_FIELD, WORD_BYTES_MAX, index_schema, time_of, tokenizers,
};

/// Longest query, in bytes.
const QUERY_BYTES_MAX: usize = 4 << 10;
/// Parentheses inside one another: Tantivy's parser tries each level anew.
const DEPTH_MAX: usize = 8;
/// Words, phrases, ranges and members of sets in one query.
const LEAVES_MAX: usize = 128;
/// Words between those of a phrase: more compares everything with everything.
const SLOP_MAX: u32 = 100;
/// Whole numbers below this are fractions too, without rounding: 2^53.
const EXACT_BELOW: f64 = 9_007_199_254_740_992.0;

/// A query that was understood.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    ast: UserInputAst,
    /// Whether anything of it is about values.
    pub(super) values: bool,
}

/// The levels that know values, each with the fields of its indexes.
static WITH_VALUES: LazyLock<Vec<Schema>> = LazyLock::new(|| {
    let levels = IndexLevel::ALL.into_iter();
    levels.filter(|level| matches!(level, IndexLevel::Full(_))).filter_map(index_schema).collect()
});

/// Understands `query`, or refuses what is too much or makes no sense to any index.
pub(super) fn understand(query: &str) -> Result<Asked, SearchError> {
    let refuse = |why: String| Err(SearchError::Invalid(format!("the query {why}")));
    if query.len() > QUERY_BYTES_MAX {
        return refuse(format!("has {} bytes, at most {QUERY_BYTES_MAX}", query.len()));
    }
    if query.contains('\0') {
        // Tantivy ends a path in JSON with one, and panics where it finds two.
        return refuse("holds a zero byte, which no field has and no word".to_owned());
    }
    let depth = depth(query);
    if depth > DEPTH_MAX {
        return refuse(format!("has {depth} parentheses inside one another, at most {DEPTH_MAX}"));
    }
    let Ok(ast) = parse_query(query) else {
        return refuse(
            "is not in Tantivy's language; try value:word or value.field:word".to_owned(),
        );
    };
    let leaves = match leaves(&ast) {
        Ok(leaves) => leaves,
        Err(why) => return refuse(why),
    };
    match leaves {
        0 => return refuse("asks for nothing".to_owned()),
        1..=LEAVES_MAX => {}
        _ => return refuse(format!("has {leaves} conditions, at most {LEAVES_MAX}")),
    }
    let asked = Asked { values: about_values(&ast), ast: put_differently(ast) };
    // One that no index can answer is wrong, whatever is archived.
    let mut wrong = None;
    for schema in WITH_VALUES.iter() {
        match compile(&asked, schema) {
            Ok(_) => return Ok(asked),
            Err(why) => wrong = Some(why),
        }
    }
    refuse(format!("cannot be answered: {}", wrong.unwrap_or_default()))
}

/// How deep parentheses stand inside one another, and chains of `NOT` and `-`,
/// which the parser descends into alike.
fn depth(query: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for byte in query.bytes() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    let words: Vec<&str> = query.split_whitespace().collect();
    let chain = words.split(|word| *word != "NOT").map(<[&str]>::len).max().unwrap_or(0);
    let signs = query.as_bytes().split(|byte| !matches!(byte, b'-' | b'+')).map(<[u8]>::len);
    deepest.max(chain).max(signs.max().unwrap_or(0))
}

/// How many conditions there are, or which of them is not taken.
fn leaves(ast: &UserInputAst) -> Result<usize, String> {
    let leaf = match ast {
        UserInputAst::Clause(clauses) => {
            return clauses.iter().map(|(_, clause)| leaves(clause)).sum();
        }
        UserInputAst::Boost(inner, _) => return leaves(inner),
        UserInputAst::Leaf(leaf) => &**leaf,
    };
    let field = field(leaf).unwrap_or_default();
    if matches!(field, KEY_FIELD | HEADER_FIELD) {
        return Err(format!(
            "asks for the {field}, which has a condition of its own beside the query"
        ));
    }
    let texts: Vec<&str> = match leaf {
        UserInputLeaf::Regex { .. } => {
            return Err("holds a regular expression, which is not taken".to_owned());
        }
        UserInputLeaf::Literal(literal) if literal.prefix => {
            return Err(
                "holds a prefix, which is not taken; for keys there is the key prefix".to_owned()
            );
        }
        UserInputLeaf::Literal(literal) if literal.slop > SLOP_MAX => {
            return Err(format!("allows more than {SLOP_MAX} words between those of a phrase"));
        }
        UserInputLeaf::Literal(literal) => vec![&literal.phrase],
        UserInputLeaf::Range { lower, upper, .. } => {
            let bounds = [lower, upper].map(UserInputBound::term_str);
            if bounds == ["*", "*"] {
                return Err(format!("has a range of {field} without a bound; give one"));
            }
            bounds.to_vec()
        }
        UserInputLeaf::Set { elements, .. } => elements.iter().map(String::as_str).collect(),
        UserInputLeaf::All | UserInputLeaf::Exists { .. } => Vec::new(),
    };
    if texts.iter().any(|text| text.len() > WORD_BYTES_MAX) {
        return Err(format!("holds a word or phrase of more than {WORD_BYTES_MAX} bytes"));
    }
    Ok(match leaf {
        UserInputLeaf::Set { elements, .. } => elements.len(),
        _ => 1,
    })
}

/// The field that a condition is about, if it names one.
fn field(leaf: &UserInputLeaf) -> Option<&str> {
    match leaf {
        UserInputLeaf::Literal(literal) => literal.field_name.as_deref(),
        UserInputLeaf::Range { field, .. }
        | UserInputLeaf::Set { field, .. }
        | UserInputLeaf::Regex { field, .. } => field.as_deref(),
        UserInputLeaf::Exists { field } => Some(field),
        UserInputLeaf::All => None,
    }
}

/// Whether any condition is about values.
fn about_values(ast: &UserInputAst) -> bool {
    match ast {
        UserInputAst::Clause(clauses) => clauses.iter().any(|(_, clause)| about_values(clause)),
        UserInputAst::Boost(inner, _) => about_values(inner),
        UserInputAst::Leaf(leaf) => {
            !matches!(**leaf, UserInputLeaf::All)
                && !matches!(field(leaf), Some(OFFSET_FIELD | TIMESTAMP_FIELD | PRODUCER_FIELD))
        }
    }
}

/// The same in conditions that Tantivy answers exactly, as the table above says.
fn put_differently(ast: UserInputAst) -> UserInputAst {
    let leaf = match ast {
        UserInputAst::Clause(clauses) => {
            let only_not = clauses.iter().all(|(occur, _)| *occur == Some(Occur::MustNot));
            let of_all = UserInputAst::Leaf(Box::new(UserInputLeaf::All));
            let of_all = only_not.then_some((Some(Occur::Must), of_all));
            let same = clauses.into_iter().map(|(occur, one)| (occur, put_differently(one)));
            return UserInputAst::Clause(same.chain(of_all).collect());
        }
        UserInputAst::Boost(inner, boost) => {
            return UserInputAst::Boost(Box::new(put_differently(*inner)), boost);
        }
        UserInputAst::Leaf(leaf) => *leaf,
    };
    let one = |leaf| UserInputAst::Leaf(Box::new(leaf));
    match leaf {
        UserInputLeaf::Range { field, lower, upper } if kind(&lower).differs(kind(&upper)) => {
            if let Some((lower, upper)) = as_fractions(&lower, &upper) {
                return one(UserInputLeaf::Range { field, lower, upper });
            }
            let unbounded = || UserInputBound::Unbounded;
            let from = UserInputLeaf::Range { field: field.clone(), lower, upper: unbounded() };
            let to = UserInputLeaf::Range { field, lower: unbounded(), upper };
            UserInputAst::Clause(vec![(Some(Occur::Must), one(from)), (Some(Occur::Must), one(to))])
        }
        UserInputLeaf::Set { field, elements } => {
            let literal = |phrase| UserInputLiteral {
                field_name: field.clone(),
                phrase,
                delimiter: Delimiter::DoubleQuotes,
                slop: 0,
                prefix: false,
            };
            let any = elements.into_iter().map(|element| {
                (Some(Occur::Should), one(UserInputLeaf::Literal(literal(element))))
            });
            UserInputAst::Clause(any.collect())
        }
        leaf => one(leaf),
    }
}

/// What Tantivy takes a bound of a range in JSON for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BoundKind {
    Open,
    Time,
    Whole,
    Large,
    Fraction,
    Bool,
    Text,
}

impl BoundKind {
    fn differs(self, other: Self) -> bool {
        self != other && self != Self::Open && other != Self::Open
    }
}

fn kind(bound: &UserInputBound) -> BoundKind {
    let text = bound.term_str();
    if text == "*" {
        BoundKind::Open
    } else if time_of(text).is_some() {
        BoundKind::Time
    } else if text.parse::<i64>().is_ok() {
        BoundKind::Whole
    } else if text.parse::<u64>().is_ok() {
        BoundKind::Large
    } else if let Ok(number) = text.parse::<f64>() {
        // Tantivy takes 2.0 for 2. What is large is put apart to be sure.
        match number.fract() == 0.0 {
            true if number.abs() < EXACT_BELOW => BoundKind::Whole,
            true => BoundKind::Large,
            false => BoundKind::Fraction,
        }
    } else if text.parse::<bool>().is_ok() {
        BoundKind::Bool
    } else {
        BoundKind::Text
    }
}

/// The same bounds as fractions, where one is a fraction and the other a whole number:
/// at least 1 is more than the fraction before 1.
fn as_fractions(
    lower: &UserInputBound,
    upper: &UserInputBound,
) -> Option<(UserInputBound, UserInputBound)> {
    let whole = |bound: &UserInputBound| {
        let number = bound.term_str().parse::<f64>().ok();
        number.filter(|number| number.abs() < EXACT_BELOW)
    };
    let exclusive = |number: f64| UserInputBound::Exclusive(number.to_string());
    let inclusive = |number: f64| UserInputBound::Inclusive(number.to_string());
    match (kind(lower), kind(upper)) {
        (BoundKind::Whole, BoundKind::Fraction) => {
            let from = whole(lower)?;
            let from = match lower {
                UserInputBound::Exclusive(_) => inclusive(from.next_up()),
                _ => exclusive(from.next_down()),
            };
            Some((from, upper.clone()))
        }
        (BoundKind::Fraction, BoundKind::Whole) => {
            let to = whole(upper)?;
            let to = match upper {
                UserInputBound::Exclusive(_) => inclusive(to.next_down()),
                _ => exclusive(to.next_up()),
            };
            Some((lower.clone(), to))
        }
        _ => None,
    }
}

/// Why an archive of `level` cannot answer `asked`, by its level alone.
pub(super) fn refusal(asked: &Asked, level: IndexLevel) -> Option<String> {
    match index_schema(level) {
        None => Some("it has none".to_owned()),
        Some(schema) => compile(asked, &schema).err(),
    }
}

/// The query over indexes with `schema`, or why these cannot answer it.
pub(super) fn compile(asked: &Asked, schema: &Schema) -> Result<Box<dyn Query>, String> {
    let value = schema.get_field(VALUE_FIELD).ok();
    let json = value.is_some_and(|field| {
        matches!(schema.get_field_entry(field).field_type(), FieldType::JsonObject(_))
    });
    check_words(&asked.ast, schema, json)?;
    let default = value.into_iter().filter(|_| !json).collect();
    let parser = QueryParser::new(schema.clone(), default, tokenizers());
    let query = parser
        .build_query_from_user_input_ast(asked.ast.clone())
        .map_err(|error| error.to_string())?;
    // What a field cannot do shows only here.
    let weight = query.weight(EnableScoring::disabled_from_schema(schema));
    weight.map_err(|error| error.to_string())?;
    Ok(query)
}

/// Refuses conditions on values that Tantivy would drop or that find nothing ever.
fn check_words(ast: &UserInputAst, schema: &Schema, json: bool) -> Result<(), String> {
    let leaf = match ast {
        UserInputAst::Clause(clauses) => {
            return clauses.iter().try_for_each(|(_, clause)| check_words(clause, schema, json));
        }
        UserInputAst::Boost(inner, _) => return check_words(inner, schema, json),
        UserInputAst::Leaf(leaf) => &**leaf,
    };
    let named = field(leaf);
    if matches!(leaf, UserInputLeaf::All) {
        return Ok(());
    }
    if json && named.is_none_or(|name| name == VALUE_FIELD) {
        return Err("values are JSON there: name a field, as value.city:Berlin".to_owned());
    }
    let UserInputLeaf::Literal(UserInputLiteral { phrase, .. }) = leaf else { return Ok(()) };
    let name = named.map_or(VALUE_FIELD, |name| name.split('.').next().unwrap_or(name));
    let Ok(field) = schema.get_field(name) else { return Ok(()) };
    let tokenizer = match schema.get_field_entry(field).field_type() {
        FieldType::Str(options) => options.get_indexing_options(),
        FieldType::JsonObject(options) => options.get_text_indexing_options(),
        _ => None,
    };
    let analyzer = tokenizer.and_then(|options| tokenizers().get(options.tokenizer()));
    let Some(mut analyzer) = analyzer else { return Ok(()) };
    let shown: String = phrase.chars().take(40).collect();
    if analyzer.token_stream(phrase).advance() {
        Ok(())
    } else {
        Err(format!("{shown:?} holds no word"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_page_shows_is_taken() {
        for query in [
            "value:paid",
            "value.city:Berlin AND value.amount:>100",
            "\"not paid\" OR producer:7",
            "offset:[100 TO 200} AND NOT value.state:open",
            "value.at:[2024-03-01T00:00:00Z TO 2024-04-01T00:00:00Z}",
            "value.city: IN [Rom Bonn]",
            "value.amount:[1 TO 2.5]",
            "((a OR b) AND (c OR d))",
            "\"far apart\"~20",
            "value.city:*",
            "NOT value:paid",
            "timestamp:>5",
            "*",
        ] {
            let asked = understand(query).unwrap();
            assert_eq!(asked.values, !matches!(query, "timestamp:>5" | "*"), "{query}");
        }
    }

    #[test]
    fn what_is_too_much_or_not_exact_is_refused_with_the_reason() {
        let refused = |query: &str, why: &str| {
            let error = understand(query).unwrap_err().to_string();
            assert!(error.contains(why) && error.len() < 200, "{query}: {error}");
        };
        refused(&"a".repeat(4097), "4097 bytes");
        refused(&"a".repeat(1025), "more than 1024 bytes");
        refused(&format!("{}a{}", "(".repeat(9), ")".repeat(9)), "parentheses");
        refused(&"(".repeat(4000), "parentheses");
        refused(&format!("{} a", "NOT ".repeat(500)), "parentheses");
        refused(&format!("{}a", "-".repeat(4000)), "parentheses");
        refused("value.c\0x:(a OR b)", "zero byte");
        // Tantivy makes one of equal conditions.
        let words: String = (0..200).map(|number| format!("w{number} ")).collect();
        refused(&words, "200 conditions");
        refused(&format!("a: IN [{}]", words.trim_end()), "200 conditions");
        refused("value:/a.*b/", "regular expression");
        refused("\"new yo\"*", "prefix");
        refused("\"a b\"~1000", "100 words");
        refused("value:[1 TO", "Tantivy's language");
        refused("value.a:[* TO *]", "without a bound");
        refused("key:YQ==", "condition of its own");
        refused("nobody:x", "nobody");
        refused("offset:five", "cannot be answered");
        refused("value.currency:€ AND value.amount:>5", "no word");
    }

    #[test]
    fn each_level_says_what_it_cannot_answer() {
        let refused = |query: &str, level: &str, why: &str| {
            let asked = understand(query).unwrap();
            let refusal = refusal(&asked, level.parse().unwrap()).unwrap();
            assert!(refusal.contains(why), "{refusal}");
        };
        refused("producer:7", "none", "none");
        refused("value:paid", "keys", "value");
        refused("value.city:Rom", "full:text", "value.city");
        refused("value:paid", "full:json", "name a field");
        refused("paid", "full:json", "name a field");
        let asked = understand("producer:7 AND offset:[1 TO 5]").unwrap();
        assert_eq!(refusal(&asked, IndexLevel::Keys), None);
    }

    #[test]
    fn the_deepest_queries_that_are_taken_are_parsed() {
        let deep = format!("{}a{}", "(".repeat(DEPTH_MAX), ")".repeat(DEPTH_MAX));
        understand(&deep).unwrap();
        let _ = understand(&format!("{}a", "(a OR ".repeat(DEPTH_MAX)));
    }
}
