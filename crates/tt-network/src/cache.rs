//! Answers from outside that were heard already, of one Env: what its members asked for tells nobody
//! else anything. Pure: it is told the time. What is kept is bounded in number, bytes and age.

use crate::answer::{HEADER_BYTES, TRUNCATED, question_end};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Answers that are kept.
const ANSWERS_MAX: usize = 512;
/// Bytes of questions and answers that are kept.
const BYTES_MAX: usize = 128 << 10;
/// The longest that an answer is believed, whatever it says.
const AGE_MAX: Duration = Duration::from_secs(3600);
/// How long an answer of yesterday serves when nobody answers (RFC 8767 suggests a day at least; an
/// Env seldom lives so long).
const STALE_MAX: Duration = Duration::from_secs(86_400);
/// What is said of the age of such an answer (RFC 8767 4).
const STALE_TTL_SECONDS: u32 = 30;
/// Pseudo-records carry no age (RFC 6891 6.1.3).
const OPT: u16 = 41;
/// Type, class, age and length of a record (RFC 1035 4.1.3).
const RECORD_HEAD_BYTES: usize = 10;
/// Type of the record that tells how long there is nothing (RFC 2308 5).
const SOA: u16 = 6;
/// Codes of answers that say something about a name.
const NO_ERROR: u8 = 0;
const NO_SUCH_NAME: u8 = 3;
const CODE_MASK: u8 = 0x0f;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    kept: BTreeMap<Vec<u8>, Kept>,
    bytes: usize,
}

#[derive(Debug)]
struct Kept {
    answer: Vec<u8>,
    /// Where the ages of its records stand.
    ages: Vec<usize>,
    since: Instant,
    until: Instant,
}

impl Cache {
    /// The answer to `question`, with its id, if it is not out of date at `now`.
    pub(crate) fn get(&self, question: &[u8], now: Instant) -> Option<Vec<u8>> {
        let kept = self.kept.get(&key(question)?).filter(|kept| now < kept.until)?;
        let passed = now.saturating_duration_since(kept.since).as_secs() as u32;
        kept.with_ages(question, |age| age.saturating_sub(passed))
    }

    /// As [`get`](Self::get), but out of date.
    pub(crate) fn stale(&self, question: &[u8], now: Instant) -> Option<Vec<u8>> {
        let kept = self.kept.get(&key(question)?)?;
        let is_known = now.saturating_duration_since(kept.since) < STALE_MAX;
        is_known.then(|| kept.with_ages(question, |_| STALE_TTL_SECONDS)).flatten()
    }

    /// Keeps an answer for as long as it says itself. What says nothing of a name is not kept.
    pub(crate) fn insert(&mut self, question: &[u8], answer: &[u8], now: Instant) {
        let (Some(key), Some((ages, life))) = (key(question), read(answer)) else { return };
        if life.is_zero() {
            return;
        }
        let kept = Kept { answer: answer.to_owned(), ages, since: now, until: now + life };
        self.remove(&key);
        let size = size(&key, &kept);
        if size > BYTES_MAX {
            return;
        }
        while self.kept.len() >= ANSWERS_MAX || self.bytes + size > BYTES_MAX {
            let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.until);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else { break };
            self.remove(&oldest);
        }
        self.bytes += size;
        self.kept.insert(key, kept);
    }

    fn remove(&mut self, key: &[u8]) {
        if let Some(kept) = self.kept.remove(key) {
            self.bytes -= size(key, &kept);
        }
    }
}

impl Kept {
    fn with_ages(&self, question: &[u8], new: impl Fn(u32) -> u32) -> Option<Vec<u8>> {
        let mut answer = self.answer.clone();
        for at in &self.ages {
            let age: &mut [u8] = answer.get_mut(*at..*at + 4)?;
            let old = u32::from_be_bytes(age.try_into().ok()?);
            age.copy_from_slice(&new(old).to_be_bytes());
        }
        // The id is the guest's, and so is how it wrote the name.
        answer.get_mut(..2)?.copy_from_slice(question.get(..2)?);
        let asked = HEADER_BYTES..question_end(question)?;
        answer.get_mut(asked.clone())?.copy_from_slice(question.get(asked)?);
        Some(answer)
    }
}

/// Lets nobody take an answer for younger than it may be: no age in it is above `seconds_max` then.
pub(crate) fn cap_ages(answer: &mut [u8], seconds_max: u32) {
    let Some((ages, _)) = read(answer) else { return };
    for at in ages {
        if let Some(age) = answer.get_mut(at..at + 4).and_then(|age| age.first_chunk_mut::<4>()) {
            *age = u32::from_be_bytes(*age).min(seconds_max).to_be_bytes();
        }
    }
}

fn size(key: &[u8], kept: &Kept) -> usize {
    key.len() + kept.answer.len() + kept.ages.len() * size_of::<usize>()
}

/// All of a question but its id, with the name in lower case: whoever asks otherwise, with other
/// flags or options, may get another answer.
fn key(question: &[u8]) -> Option<Vec<u8>> {
    let end = question_end(question)?;
    let mut key = question.get(2..)?.to_vec();
    key.get_mut(HEADER_BYTES - 2..end - 2)?.make_ascii_lowercase();
    Some(key)
}

/// Where the ages of an answer's records stand, and how long it is true.
fn read(answer: &[u8]) -> Option<(Vec<usize>, Duration)> {
    let code = answer.get(3)? & CODE_MASK;
    if answer.get(2)? & TRUNCATED != 0 || ![NO_ERROR, NO_SUCH_NAME].contains(&code) {
        return None;
    }
    let count =
        |at: usize| Some(usize::from(u16::from_be_bytes([*answer.get(at)?, *answer.get(at + 1)?])));
    let records = count(6)? + count(8)? + count(10)?;
    let is_empty = count(6)? == 0;
    let mut at = question_end(answer)?;
    let (mut ages, mut life) = (Vec::new(), None::<u32>);
    let mut has_soa = false;
    for _ in 0..records {
        at = name_end(answer, at)?;
        let head = answer.get(at..at + RECORD_HEAD_BYTES)?;
        let kind = u16::from_be_bytes([head[0], head[1]]);
        let age = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        let end = at + RECORD_HEAD_BYTES + usize::from(u16::from_be_bytes([head[8], head[9]]));
        if end > answer.len() {
            return None;
        }
        if kind != OPT {
            ages.push(at + 4);
            life = Some(life.map_or(age, |life| life.min(age)));
        }
        if kind == SOA {
            // The last of its numbers is how long there is nothing.
            let least = answer.get(end.checked_sub(4)?..end)?;
            let least = u32::from_be_bytes(least.try_into().ok()?);
            life = Some(life.map_or(least, |life| life.min(least)));
            has_soa = true;
        }
        at = end;
    }
    if is_empty && !has_soa {
        return None;
    }
    Some((ages, Duration::from_secs(life?.into()).min(AGE_MAX)))
}

/// Where the name at `at` ends, which may be compressed.
fn name_end(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0..=0xff => return Some(at + 2),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Message, Query, ResponseCode};
    use hickory_proto::rr::rdata::{A, SOA};
    use hickory_proto::rr::{Name, RData, Record, RecordType};

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn question(text: &str, id: u16) -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.id = id;
        message.add_query(Query::query(name(text), RecordType::A));
        message.to_vec().unwrap()
    }

    fn answer(question: &[u8], ages: &[u32]) -> Vec<u8> {
        let mut message = Message::from_vec(question).unwrap().into_response();
        let owner = message.queries[0].name().clone();
        for (last, age) in ages.iter().enumerate() {
            let data = RData::A(A::new(192, 0, 2, last as u8));
            message.add_answer(Record::from_rdata(owner.clone(), *age, data));
        }
        message.to_vec().unwrap()
    }

    fn ages(answer: &[u8]) -> Vec<u32> {
        Message::from_vec(answer).unwrap().answers.iter().map(|record| record.ttl).collect()
    }

    #[test]
    fn an_answer_serves_until_its_youngest_record_is_old() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let asked = question("example.com.", 1);
        cache.insert(&asked, &answer(&asked, &[60, 300]), now);
        let again = question("EXAMPLE.com.", 2);
        let later = now + Duration::from_secs(20);
        let got = cache.get(&again, later).unwrap();
        assert_eq!(ages(&got), [40, 280]);
        assert!(crate::answer::is_answer(&again, &got));
        assert_eq!((&got[..2], &got[12..25]), (&again[..2], &again[12..25]));
        let old = now + Duration::from_secs(60);
        assert_eq!(cache.get(&again, old), None);
        assert_eq!(ages(&cache.stale(&again, old).unwrap()), [30, 30]);
        assert_eq!(cache.stale(&again, now + STALE_MAX), None);
        assert_eq!(cache.get(&question("example.org.", 3), now), None);
    }

    #[test]
    fn that_there_is_nothing_is_kept_as_long_as_its_zone_says() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let asked = question("no.example.com.", 1);
        let mut message = Message::from_vec(&asked).unwrap().into_response();
        message.metadata.response_code = ResponseCode::NXDomain;
        cache.insert(&asked, &message.to_vec().unwrap(), now);
        assert_eq!(cache.get(&asked, now), None, "it does not say how long");
        let soa = SOA::new(name("a."), name("b."), 1, 2, 3, 4, 50);
        message.add_authority(Record::from_rdata(name("example.com."), 900, RData::SOA(soa)));
        cache.insert(&asked, &message.to_vec().unwrap(), now);
        assert!(cache.get(&asked, now + Duration::from_secs(49)).is_some());
        assert_eq!(cache.get(&asked, now + Duration::from_secs(50)), None);
    }

    #[test]
    fn failures_cut_answers_and_noise_are_not_kept() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let asked = question("example.com.", 1);
        let good = answer(&asked, &[60]);
        let changed = |at: usize, bits: u8| {
            let mut bad = good.clone();
            bad[at] |= bits;
            bad
        };
        cache.insert(&asked, &changed(2, TRUNCATED), now);
        cache.insert(&asked, &changed(3, 2), now);
        cache.insert(&asked, &changed(7, 2), now);
        cache.insert(&asked, &answer(&asked, &[0]), now);
        for length in 0..good.len() {
            cache.insert(&asked, &good[..length], now);
        }
        assert!(cache.kept.is_empty());
        for at in 0..good.len() {
            for byte in 0..=255 {
                let mut bad = good.clone();
                bad[at] = byte;
                cache.insert(&asked, &bad, now);
                let _ = cache.get(&asked, now);
            }
        }
    }

    #[test]
    fn it_is_bounded_in_number_bytes_and_age() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for number in 0..2000u32 {
            let asked = question(&format!("n{number}.example.com."), 1);
            cache.insert(&asked, &answer(&asked, &[100 + number]), now);
        }
        assert_eq!(cache.kept.len(), ANSWERS_MAX);
        assert!(cache.get(&question("n1999.example.com.", 1), now).is_some());
        for number in 0..100u32 {
            let asked = question(&format!("m{number}.example.com."), 1);
            cache.insert(&asked, &answer(&asked, &[u32::MAX; 200]), now);
        }
        assert!(cache.bytes <= BYTES_MAX, "{}", cache.bytes);
        let sum: usize = cache.kept.iter().map(|(key, kept)| size(key, kept)).sum();
        assert_eq!(cache.bytes, sum);
        let last = question("m99.example.com.", 1);
        assert!(cache.get(&last, now + AGE_MAX - Duration::from_secs(1)).is_some());
        assert_eq!(cache.get(&last, now + AGE_MAX), None);
    }
}
