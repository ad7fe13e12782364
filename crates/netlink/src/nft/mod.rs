//! nftables: tables, chains, rules, sets and maps as typed values, sent as one transaction.
//!
//! A [`Batch`] collects changes; [`commit`](crate::netns::NetnsHandle::commit) sends them: all take
//! effect at once or none does, and an error names the change that the kernel refused. A [`Rule`]
//! is built from its matches and statements; the building blocks below it are [`Load`] (what is
//! read from a packet into registers) and [`Expr`].
//!
//! ```no_run
//! use shoal_netlink::nft::{Base, Batch, Family, FieldType, Load, Rule, Set, Table};
//! # use shoal_netlink::{error::NetlinkError, netns::NetnsHandle};
//! # fn f(ns: &NetnsHandle) -> Result<(), NetlinkError> {
//! let table = Table::new(Family::Ip, "lb");
//! let buckets = Set::map("buckets", [FieldType::Ip, FieldType::Number], [FieldType::Ip]);
//! let key = [Load::IpDaddr, Load::random(16)];
//! let mut batch = Batch::new();
//! batch.replace_table(&table);
//! batch.add_set(&table, &buckets);
//! batch.add_base_chain(&table, "pre", &Base::dstnat());
//! batch.add_rule(&table, "pre", &Rule::new("balance").dnat_map(&key, "buckets", false));
//! ns.commit(batch)
//! # }
//! ```

mod batch;
mod chain;
mod expr;
mod list;
mod rule;
mod set;
pub(crate) mod sys;

pub use batch::Batch;
pub use chain::{Base, ChainKind, CtTimeout, Family, Hook, Table, Timeouts, priority};
pub use expr::{CmpOp, Expr, Load, Reg, Reject, SetRef, Verdict, ct_state, ct_status};
pub use list::{ChainInfo, RuleInfo, SetInfo};
pub use rule::Rule;
pub use set::{Data, Element, Field, FieldType, Set, SetData};
