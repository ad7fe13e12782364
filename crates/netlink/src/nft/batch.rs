//! Transactions: changes that take effect together or not at all.

use crate::attr::Writer;
use crate::error::{Cause, NetlinkError};
use crate::netns::NetnsHandle;
use crate::socket::{BatchFailure, F_ACK, F_APPEND, F_CREATE, F_REQUEST};

use super::chain::{Base, CtTimeout, Table};
use super::expr::{Expr, Resolved, SetRef};
use super::rule::Rule;
use super::set::{Element, Set};
use super::sys;

/// Elements in one message: their list must stay below 64 KiB, and no element reaches 120 bytes.
const ELEMENTS_MAX: usize = 500;
/// Longest comment of a rule: user data has 256 bytes, three of them are around the text.
const COMMENT_LEN_MAX: usize = 250;
/// Name that the kernel completes to a unique one.
const OWN_SET: &str = "__set%d";

/// A transaction in the making. The order of calls is the order of changes.
#[derive(Debug, Default)]
pub struct Batch {
    items: Vec<Item>,
    /// Sets get numbers so that rules of the same transaction can point at them.
    sets: u32,
    /// A mistake found while the transaction was put together.
    mistake: Option<NetlinkError>,
}

#[derive(Debug)]
struct Item {
    message: Writer,
    action: &'static str,
    object: String,
}

impl Batch {
    /// An empty transaction.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.mistake.is_none()
    }

    /// How many messages it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    fn add(
        &mut self,
        action: &'static str,
        object: String,
        table: &Table,
        kind: u16,
        flags: u16,
        fill: impl FnOnce(&mut Writer),
    ) {
        let header = sys::header(table.family.number(), 0);
        let mut message = Writer::message(sys::kind(kind), F_REQUEST | flags, &header);
        message.attr_str(sys::TABLE, &table.name);
        fill(&mut message);
        self.items.push(Item { message, action, object });
    }

    fn in_table(&mut self, action: &'static str, table: &Table, kind: u16, flags: u16) {
        self.add(action, table.describe(), table, kind, flags, |_| {});
    }

    /// Makes sure that the table exists.
    pub fn add_table(&mut self, table: &Table) {
        self.in_table("add the nft table", table, sys::NEWTABLE, F_CREATE);
    }

    /// Makes sure that the table does not exist.
    pub fn delete_table(&mut self, table: &Table) {
        self.add_table(table);
        self.in_table("delete the nft table", table, sys::DELTABLE, 0);
    }

    /// Makes sure that the table exists and is empty.
    pub fn replace_table(&mut self, table: &Table) {
        self.delete_table(table);
        self.add_table(table);
    }

    /// Deletes all rules of the table; chains, sets and objects stay.
    pub fn flush_rules(&mut self, table: &Table) {
        self.in_table("flush the nft table", table, sys::DELRULE, 0);
    }

    /// Makes sure that a chain exists that others jump to.
    pub fn add_chain(&mut self, table: &Table, name: &str) {
        let object = format!("{} {name}", table.describe());
        self.add("add the nft chain", object, table, sys::NEWCHAIN, F_CREATE, |w| {
            w.attr_str(sys::CHAIN_NAME, name);
        });
    }

    /// Makes sure that a base chain exists.
    pub fn add_base_chain(&mut self, table: &Table, name: &str, base: &Base) {
        let object = format!("{} {name}", table.describe());
        self.add("add the nft chain", object, table, sys::NEWCHAIN, F_CREATE, |w| {
            w.attr_str(sys::CHAIN_NAME, name);
            base.encode(w);
        });
    }

    /// Deletes all rules of a chain.
    pub fn flush_chain(&mut self, table: &Table, name: &str) {
        let object = format!("{} {name}", table.describe());
        self.add("flush the nft chain", object, table, sys::DELRULE, 0, |w| {
            w.attr_str(sys::RULE_CHAIN, name);
        });
    }

    /// Deletes a chain without rules that nobody jumps to.
    pub fn delete_chain(&mut self, table: &Table, name: &str) {
        let object = format!("{} {name}", table.describe());
        self.add("delete the nft chain", object, table, sys::DELCHAIN, 0, |w| {
            w.attr_str(sys::CHAIN_NAME, name);
        });
    }

    /// Appends a rule to a chain, with the sets of its own.
    pub fn add_rule(&mut self, table: &Table, chain: &str, rule: &Rule) {
        let object = format!("{} {chain}: {}", table.describe(), rule.comment);
        let mut exprs = Writer::fragment();
        for expr in &rule.exprs {
            self.encode_expr(table, expr, &mut exprs);
        }
        self.add("add the nft rule", object, table, sys::NEWRULE, F_CREATE | F_APPEND, |w| {
            w.attr_str(sys::RULE_CHAIN, chain);
            w.nest(sys::RULE_EXPRESSIONS, |w| w.append(&exprs));
            if !rule.comment.is_empty() {
                w.attr(sys::RULE_USERDATA, &userdata(&rule.comment));
            }
        });
    }

    fn encode_expr(&mut self, table: &Table, expr: &Expr, exprs: &mut Writer) {
        match expr.set() {
            None => expr.encode(None, exprs),
            Some(SetRef::Named(name)) => expr.encode(Some(&Resolved { name, id: None }), exprs),
            Some(SetRef::Own(set, elements)) => {
                let set = Set { name: OWN_SET.to_owned(), ..set.clone() };
                let id = self.put_set(table, &set, Some(elements.len()));
                self.put_elements(table, &set, elements, Some(id));
                expr.encode(Some(&Resolved { name: OWN_SET, id: Some(id) }), exprs);
            }
        }
    }

    /// Deletes a rule by its handle (see [`RuleInfo`](super::RuleInfo)).
    pub fn delete_rule(&mut self, table: &Table, chain: &str, handle: u64) {
        let object = format!("{} {chain} #{handle}", table.describe());
        self.add("delete the nft rule", object, table, sys::DELRULE, 0, |w| {
            w.attr_str(sys::RULE_CHAIN, chain);
            w.attr_be64(sys::RULE_HANDLE, handle);
        });
    }

    /// Makes sure that a set or map exists.
    pub fn add_set(&mut self, table: &Table, set: &Set) {
        self.put_set(table, set, None);
    }

    fn put_set(&mut self, table: &Table, set: &Set, anonymous: Option<usize>) -> u32 {
        self.sets += 1;
        let id = self.sets;
        let object = format!("{} {}", table.describe(), set.name);
        self.add("add the nft set", object, table, sys::NEWSET, F_CREATE, |w| {
            w.attr_str(sys::SET_NAME, &set.name);
            set.encode(w, id, anonymous);
        });
        id
    }

    /// Deletes a set or map that no rule uses.
    pub fn delete_set(&mut self, table: &Table, name: &str) {
        let object = format!("{} {name}", table.describe());
        self.add("delete the nft set", object, table, sys::DELSET, 0, |w| {
            w.attr_str(sys::SET_NAME, name);
        });
    }

    /// Deletes all elements of a set or map.
    pub fn flush_set(&mut self, table: &Table, name: &str) {
        let object = format!("{} {name}", table.describe());
        self.add("flush the nft set", object, table, sys::DELSETELEM, 0, |w| {
            w.attr_str(sys::ELEMS_SET, name);
        });
    }

    /// Adds elements; those that are there with the same value stay. Another value for a key that
    /// is there is an error: delete the element first, in the same transaction.
    pub fn add_elements(&mut self, table: &Table, set: &Set, elements: &[Element]) {
        self.put_elements(table, set, elements, None);
    }

    fn put_elements(&mut self, table: &Table, set: &Set, all: &[Element], id: Option<u32>) {
        self.elements("add the elements to the nft set", sys::NEWSETELEM, table, set, all, id);
    }

    /// Deletes elements by their keys; one that is not there is an error.
    pub fn delete_elements(&mut self, table: &Table, set: &Set, elements: &[Element]) {
        let action = "delete the elements of the nft set";
        self.elements(action, sys::DELSETELEM, table, set, elements, None);
    }

    fn elements(
        &mut self,
        action: &'static str,
        kind: u16,
        table: &Table,
        set: &Set,
        elements: &[Element],
        id: Option<u32>,
    ) {
        let object = format!("{} {}", table.describe(), set.name);
        if !elements.iter().all(|element| set.fits(element)) && self.mistake.is_none() {
            let cause = Cause::Malformed("an element is not made of what the set is made of");
            self.mistake = Some(cause.of(action, &object));
        }
        let flags = if kind == sys::NEWSETELEM { F_CREATE } else { 0 };
        let ranges = set.interval && set.key.len() == 1;
        for part in elements.chunks(ELEMENTS_MAX) {
            self.add(action, object.clone(), table, kind, flags, |w| {
                w.attr_str(sys::ELEMS_SET, &set.name);
                if let Some(id) = id {
                    w.attr_be32(sys::ELEMS_SET_ID, id);
                }
                w.nest(sys::ELEMS_LIST, |w| {
                    part.iter().for_each(|element| element.encode(ranges, w))
                });
            });
        }
    }

    /// Makes sure that a timeout policy exists.
    pub fn add_ct_timeout(&mut self, table: &Table, timeout: &CtTimeout) {
        let object = format!("{} {}", table.describe(), timeout.name);
        self.add("add the nft ct timeout", object, table, sys::NEWOBJ, F_CREATE, |w| {
            timeout.encode(w);
        });
    }

    /// Deletes a timeout policy that no rule uses.
    pub fn delete_ct_timeout(&mut self, table: &Table, name: &str) {
        let object = format!("{} {name}", table.describe());
        self.add("delete the nft ct timeout", object, table, sys::DELOBJ, 0, |w| {
            w.attr_str(sys::OBJ_NAME, name);
            w.attr_be32(sys::OBJ_TYPE, sys::OBJECT_CT_TIMEOUT);
        });
    }
}

fn userdata(comment: &str) -> Vec<u8> {
    let mut end = comment.len().min(COMMENT_LEN_MAX);
    while !comment.is_char_boundary(end) {
        end -= 1;
    }
    // Both lengths fit: the text has at most 250 bytes.
    let mut out = vec![sys::UDATA_COMMENT, (end + 1) as u8];
    out.extend_from_slice(&comment.as_bytes()[..end]);
    out.push(0);
    out
}

impl NetnsHandle {
    /// Carries out a transaction: everything or nothing.
    ///
    /// # Errors
    /// Names the first change that the kernel refused.
    pub fn commit(&self, batch: Batch) -> Result<(), NetlinkError> {
        let Batch { mut items, mistake, .. } = batch;
        if let Some(mistake) = mistake {
            return Err(mistake);
        }
        let Some(last) = items.last_mut() else { return Ok(()) };
        last.message.add_flags(F_ACK);
        let whole = |c: Cause| c.of("commit the nft transaction", self.object("all"));
        let count = u32::try_from(items.len()).unwrap_or(u32::MAX).saturating_add(2);
        let header = sys::header(0, sys::SUBSYS_NFTABLES);
        let frame = |kind: u16, seq: u32| {
            let mut w = Writer::message(kind, F_REQUEST, &header);
            w.finish(seq).map(<[u8]>::to_vec).unwrap_or_default()
        };
        let mut too_long = None;
        let sent = self.netfilter_socket().with(|socket| {
            let first = socket.reserve(count);
            let mut piece = frame(sys::BATCH_BEGIN, first);
            for (at, (item, seq)) in items.iter_mut().zip(first + 1..).enumerate() {
                let Some(bytes) = item.message.finish(seq) else {
                    too_long = Some(at);
                    return Err(Cause::Malformed("the change is too long for one message"));
                };
                piece.extend_from_slice(bytes);
            }
            piece.extend(frame(sys::BATCH_END, first + count - 1));
            Ok((first, socket.batch(&piece, first + count - 2)?))
        });
        let (first, failures) =
            sent.map_err(|cause| match too_long.and_then(|at| items.get(at)) {
                Some(item) => cause.of(item.action, self.object(&item.object)),
                None => whole(cause),
            })?;
        match failures.into_iter().min_by_key(|failure| failure.seq) {
            None => Ok(()),
            Some(BatchFailure { seq, cause }) => {
                let at = seq.checked_sub(first + 1).map(|at| at as usize);
                match at.and_then(|at| items.get(at)) {
                    Some(item) => Err(cause.of(item.action, self.object(&item.object))),
                    None => Err(whole(cause)),
                }
            }
        }
    }
}
