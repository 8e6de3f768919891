//! Finding free addresses and ports: reads only a window behind the cursor, whatever the number
//! of those that are taken elsewhere.

use super::{Tables, TablesError};
use crate::{Range, StoreError};
use std::net::Ipv4Addr;
use std::ops::{Bound, RangeInclusive};
use tt_model::{Host, HostId};

/// Taken numbers read at once.
const WINDOW: usize = 1024;

impl Tables {
    /// Up to `number` free addresses of the host, from its cursor on and then from the start.
    pub fn free_addresses(
        &self,
        host: &Host,
        cursor: u32,
        number: usize,
    ) -> Result<Vec<Ipv4Addr>, TablesError> {
        let (first, last) = host.addresses();
        let space = u32::from(first)..=u32::from(last);
        let prefix = format!("addr/{}/", host.id);
        let free = self.free_numbers(&prefix, space, cursor, number, |_| true)?;
        Ok(free.into_iter().map(Ipv4Addr::from).collect())
    }

    /// Up to `number` public ports of the host that no Vm has and `usable` accepts.
    pub fn free_ports(
        &self,
        host: &Host,
        cursor: u16,
        number: usize,
        usable: impl Fn(u16) -> bool,
    ) -> Result<Vec<u16>, TablesError> {
        let space = u32::from(host.port_min)..=u32::from(host.port_max);
        let accept = |n: u32| u16::try_from(n).is_ok_and(&usable);
        let prefix = port_prefix(host.id);
        let free = self.free_numbers(&prefix, space, cursor.into(), number, accept)?;
        Ok(free.into_iter().filter_map(|n| u16::try_from(n).ok()).collect())
    }

    fn free_numbers(
        &self,
        prefix: &str,
        space: RangeInclusive<u32>,
        cursor: u32,
        number: usize,
        accept: impl Fn(u32) -> bool,
    ) -> Result<Vec<u32>, TablesError> {
        let (first, last) = (*space.start(), *space.end());
        let middle = if space.contains(&cursor) { cursor } else { first };
        let mut free = Vec::with_capacity(number);
        for span in [middle..=last, first..=middle.saturating_sub(1)] {
            self.free_in_span(prefix, span, number, &accept, &mut free)?;
        }
        Ok(free)
    }

    fn free_in_span(
        &self,
        prefix: &str,
        span: RangeInclusive<u32>,
        number: usize,
        accept: &impl Fn(u32) -> bool,
        free: &mut Vec<u32>,
    ) -> Result<(), TablesError> {
        let mut next = *span.start();
        while free.len() < number && next <= *span.end() {
            let page = self.kv.scan(&Range {
                prefix: prefix.to_owned(),
                from: Bound::Included(format!("{prefix}{next:08x}")),
                limit: WINDOW,
            })?;
            let number_of = |key: &str| u32::from_str_radix(key.strip_prefix(prefix)?, 16).ok();
            let taken: Result<Vec<u32>, StoreError> = page
                .entries
                .iter()
                .map(|entry| {
                    number_of(&entry.key).ok_or_else(|| StoreError::CheckKey {
                        key: entry.key.clone(),
                        len: entry.key.len(),
                    })
                })
                .collect();
            let taken = taken?;
            let known = match taken.last() {
                Some(last) if page.more => *last,
                _ => *span.end(),
            };
            let mut taken = taken.into_iter().peekable();
            for candidate in next..=known.min(*span.end()) {
                if taken.peek() == Some(&candidate) {
                    taken.next();
                } else if accept(candidate) && free.len() < number {
                    free.push(candidate);
                }
                if free.len() == number {
                    return Ok(());
                }
            }
            next = known.saturating_add(1);
        }
        Ok(())
    }
}

fn port_prefix(host: HostId) -> String {
    format!("port/{host}/")
}
