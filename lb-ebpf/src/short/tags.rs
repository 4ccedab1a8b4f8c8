//! Where in the flow table a hash may be. Functions with a C interface as in [`table`](crate::stages::table):
//! what they give is a number that the verifier knows nothing about, and does not ask where it is from.

use lb_common::{
    abi::limits::WAYS,
    flow::{ReplyWord, buckets, index, tag},
};

use crate::{
    maps::{Bucket, FLOW_WORDS, REPLY_WORDS},
    opaque::opaque,
    settings::{flow_mask, reply_mask},
    stages::table::NO_PLACE,
};

/// The first place of a flow with the tag of the hash; [`NO_PLACE`]: there is none, or a bucket has several. The
/// second bucket is asked for before the first has been looked at: where neither is in the cache, they come
/// together.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tagged_flow(hash: u64) -> u32 {
    let [first, second] = buckets(hash, flow_mask());
    let (Some(one), Some(other)) = (FLOW_WORDS.get_ptr_mut(first), FLOW_WORDS.get_ptr_mut(second)) else {
        return NO_PLACE;
    };
    // SAFETY: within the bucket.
    unsafe { (&raw const (*other).words[0]).read_volatile() };
    let (mut bucket, mut way) = (first, way_of(one, tag(hash)));
    if way >= WAYS {
        (bucket, way) = (second, way_of(other, tag(hash)));
    }
    if way < WAYS { index(bucket, way as u32) } else { NO_PLACE }
}

/// The same of a reply: the place of the flow that the first reply word with the tag names.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tagged_reply(hash: u64) -> u32 {
    let [first, second] = buckets(hash, reply_mask());
    let (Some(one), Some(other)) = (REPLY_WORDS.get_ptr_mut(first), REPLY_WORDS.get_ptr_mut(second)) else {
        return NO_PLACE;
    };
    // SAFETY: within the bucket.
    unsafe { (&raw const (*other).words[0]).read_volatile() };
    let (mut words, mut way) = (one, way_of(one, tag(hash)));
    if way >= WAYS {
        (words, way) = (other, way_of(other, tag(hash)));
    }
    if way >= WAYS {
        return NO_PLACE;
    }
    // SAFETY: the remainder is below the bucket's length; the word may change, so it is read once.
    ReplyWord(unsafe { (&raw const (*words).words[way % WAYS]).read_volatile() }).index_or_max()
}

/// What one way that has the tag adds to the sum, besides its number: of two the sum tells that there are two.
const ONE: usize = 1 << 8;
const _: () = assert!(WAYS * WAYS < ONE);

/// The way of a bucket with the tag; [`WAYS`] or more: there is none, or there are several. Without a branch
/// for each way, because the processor cannot guess which it is; hidden from the compiler, which would make
/// branches of it.
#[inline(always)]
fn way_of(bucket: *const Bucket, tag: u32) -> usize {
    let mut sum = 0;
    for way in 0..WAYS {
        let different = (tag_at(bucket, way) ^ tag) as u64;
        // 1 where it is the tag. Not a mask of all ones: the verifier goes both ways where it sees one.
        let is_it = opaque((different.wrapping_sub(1) >> 63) as usize);
        sum += is_it * (ONE + way);
    }
    sum.wrapping_sub(ONE)
}

/// The lower half of a word, which others may change.
#[inline(always)]
fn tag_at(bucket: *const Bucket, way: usize) -> u32 {
    let upper_first = cfg!(target_endian = "big") as usize;
    // SAFETY: within the bucket.
    unsafe { bucket.cast::<u32>().add(way * 2 + upper_first).read_volatile() }
}
