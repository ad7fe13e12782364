//! What the kernel has: enough to compare it with what it should have.

use crate::attr::{Writer, attrs, be32, be64, find, text};
use crate::error::{Cause, NetlinkError};
use crate::netns::NetnsHandle;
use crate::socket::Message;

use super::chain::{Family, Table};
use super::set::{Decoded, Element, Set, before, highest};
use super::sys;

/// A chain as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainInfo {
    /// Its name.
    pub name: String,
    /// Its number.
    pub handle: u64,
    /// Hook number, priority and device of a base chain.
    pub base: Option<(u32, i32, Option<String>)>,
    /// Whether it drops what none of its rules decides.
    pub policy_drop: bool,
}

/// A rule as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleInfo {
    /// Its chain.
    pub chain: String,
    /// Its number.
    pub handle: u64,
    /// Its comment, empty if it has none.
    pub comment: String,
    /// Names of its expressions, in order.
    pub exprs: Vec<String>,
}

/// A set or map as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetInfo {
    /// Its name.
    pub name: String,
    /// Length of its keys in bytes.
    pub key_len: u32,
    /// Length of its values in bytes, 0 if it has none.
    pub data_len: u32,
    /// Whether it belongs to a rule.
    pub anonymous: bool,
}

impl NetnsHandle {
    fn nft_dump(
        &self,
        action: &'static str,
        object: &str,
        family: u8,
        kind: u16,
        fill: impl FnOnce(&mut Writer),
    ) -> Result<Vec<Message>, NetlinkError> {
        let mut request = Writer::message(sys::kind(kind), 0, &sys::header(family, 0));
        fill(&mut request);
        match self.netfilter_socket().dump(request) {
            // The table itself is gone: nothing of it is left to list.
            Err(Cause::Kernel { errno: libc::ENOENT, .. }) => Ok(Vec::new()),
            other => other.map_err(|c| c.of(action, self.object(object))),
        }
    }

    fn nft_dump_table(
        &self,
        action: &'static str,
        table: &Table,
        kind: u16,
    ) -> Result<Vec<Message>, NetlinkError> {
        let family = table.family.number();
        let all = self.nft_dump(action, &table.describe(), family, kind, |w| {
            w.attr_str(sys::TABLE, &table.name);
        })?;
        let ours = |m: &Message| {
            m.payload.first() == Some(&family)
                && of(m, sys::TABLE).map(text).as_deref() == Some(&table.name)
        };
        Ok(all.into_iter().filter(ours).collect())
    }

    /// All tables of the families in [`Family`].
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn nft_tables(&self) -> Result<Vec<Table>, NetlinkError> {
        let all = self.nft_dump("list the nft tables", "all", 0, sys::GETTABLE, |_| {})?;
        let parse = |m: &Message| {
            let family = Family::of(*m.payload.first()?)?;
            Some(Table { family, name: of(m, sys::TABLE_NAME).map(text)? })
        };
        Ok(all.iter().filter_map(parse).collect())
    }

    /// The chains of a table; none if there is no such table.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn nft_chains(&self, table: &Table) -> Result<Vec<ChainInfo>, NetlinkError> {
        let all = self.nft_dump_table("list the nft chains", table, sys::GETCHAIN)?;
        let base = |hook: &[u8]| {
            let device = find(hook, sys::HOOK_DEV).map(text);
            let number = find(hook, sys::HOOK_NUM).and_then(be32)?;
            let priority = find(hook, sys::HOOK_PRIORITY).and_then(be32)?.cast_signed();
            Some((number, priority, device))
        };
        let parse = |m: &Message| {
            Some(ChainInfo {
                name: of(m, sys::CHAIN_NAME).map(text)?,
                handle: of(m, sys::CHAIN_HANDLE).and_then(be64)?,
                base: of(m, sys::CHAIN_HOOK).and_then(base),
                policy_drop: of(m, sys::CHAIN_POLICY).and_then(be32) == Some(0),
            })
        };
        Ok(all.iter().filter_map(parse).collect())
    }

    /// The rules of a table, chain by chain in order; none if there is no such table.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn nft_rules(&self, table: &Table) -> Result<Vec<RuleInfo>, NetlinkError> {
        let all = self.nft_dump_table("list the nft rules", table, sys::GETRULE)?;
        let names = |list: &[u8]| {
            attrs(list).filter_map(|(_, e)| find(e, sys::EXPR_NAME).map(text)).collect()
        };
        let parse = |m: &Message| {
            Some(RuleInfo {
                chain: of(m, sys::RULE_CHAIN).map(text)?,
                handle: of(m, sys::RULE_HANDLE).and_then(be64)?,
                comment: of(m, sys::RULE_USERDATA).and_then(comment).unwrap_or_default(),
                exprs: of(m, sys::RULE_EXPRESSIONS).map(names).unwrap_or_default(),
            })
        };
        Ok(all.iter().filter_map(parse).collect())
    }

    /// The sets and maps of a table; none if there is no such table.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn nft_sets(&self, table: &Table) -> Result<Vec<SetInfo>, NetlinkError> {
        let all = self.nft_dump_table("list the nft sets", table, sys::GETSET)?;
        let parse = |m: &Message| {
            let flags = of(m, sys::SET_FLAGS).and_then(be32).unwrap_or(0);
            Some(SetInfo {
                name: of(m, sys::SET_NAME).map(text)?,
                key_len: of(m, sys::SET_KEY_LEN).and_then(be32)?,
                data_len: of(m, sys::SET_DATA_LEN).and_then(be32).unwrap_or(0),
                anonymous: flags & sys::SET_F_ANONYMOUS != 0,
            })
        };
        Ok(all.iter().filter_map(parse).collect())
    }

    /// The names of a table's timeout policies and other stateful objects.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn nft_objects(&self, table: &Table) -> Result<Vec<String>, NetlinkError> {
        let all = self.nft_dump_table("list the nft objects", table, sys::GETOBJ)?;
        Ok(all.iter().filter_map(|m| of(m, sys::OBJ_NAME).map(text)).collect())
    }

    /// The elements of a set or map, read as what `set` says; sorted. None if there is no such set.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn nft_elements(&self, table: &Table, set: &Set) -> Result<Vec<Element>, NetlinkError> {
        let object = format!("{} {}", table.describe(), set.name);
        let action = "list the elements of the nft set";
        let family = table.family.number();
        let all = self.nft_dump(action, &object, family, sys::GETSETELEM, |w| {
            w.attr_str(sys::TABLE, &table.name);
            w.attr_str(sys::ELEMS_SET, &set.name);
        })?;
        let mut elements = Vec::new();
        let mut ends = Vec::new();
        for message in &all {
            let list = of(message, sys::ELEMS_LIST).unwrap_or_default();
            for (_, attrs) in attrs(list) {
                match set.decode(attrs) {
                    Some(Decoded::Element(element)) => elements.push(element),
                    Some(Decoded::End(key)) => ends.push(key),
                    None => {}
                }
            }
        }
        elements.sort();
        ends.sort();
        if set.interval && set.key.len() == 1 {
            for element in &mut elements {
                let next = ends.iter().find(|end| **end > element.key);
                element.end = match next {
                    Some(next) => before(next),
                    None => highest(&element.key),
                };
            }
        }
        Ok(elements)
    }

    /// The number of the last change to the namespace's nftables, whoever made it.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn nft_generation(&self) -> Result<u32, NetlinkError> {
        const GEN_ID: u16 = 1;
        let named = |c: Cause| c.of("read the nft generation", self.object("all"));
        let request = Writer::message(sys::kind(sys::GETGEN), 0, &sys::header(0, 0));
        let answers = self.netfilter_socket().get(request).map_err(named)?;
        let number = answers.first().and_then(|m| of(m, GEN_ID)).and_then(be32);
        number.ok_or_else(|| named(Cause::Malformed("the answer has no number")))
    }
}

/// An attribute of a message, behind its four-byte header.
fn of(message: &Message, kind: u16) -> Option<&[u8]> {
    find(message.payload.get(4..)?, kind)
}

fn comment(userdata: &[u8]) -> Option<String> {
    let mut rest = userdata;
    while let [kind, len, tail @ ..] = rest {
        let value = tail.get(..usize::from(*len))?;
        if *kind == sys::UDATA_COMMENT {
            return Some(text(value));
        }
        rest = &tail[value.len()..];
    }
    None
}
