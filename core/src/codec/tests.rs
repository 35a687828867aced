#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::buffer::{Bytes, TransferBuffer};
use crate::value::{DType, ErrorValue, TypedArray, Value};

fn written(value: &Value, options: &Options) -> Vec<u8> {
    let mut out = Vec::new();
    encode(value, options, &mut out).unwrap();
    out
}

fn kind_of<T: std::fmt::Debug>(done: Result<T>) -> ErrorKind {
    done.unwrap_err().kind()
}

fn nested(depth: usize) -> Value {
    (1..depth).fold(Value::Array(Vec::new()), |inner, _| Value::Array(vec![inner]))
}

#[test]
fn every_length_takes_the_smallest_head() {
    let options = Options::default();
    for (len, text, bytes, array, map) in [
        (0, 1, 2, 1, 1),
        (15, 1, 2, 1, 1),
        (16, 1, 2, 3, 3),
        (31, 1, 2, 3, 3),
        (32, 2, 2, 3, 3),
        (255, 2, 2, 3, 3),
        (256, 3, 3, 3, 3),
        (65_535, 3, 3, 3, 3),
        (65_536, 5, 5, 5, 5),
    ] {
        let nils = || (0..len).map(|_| Value::Nil);
        for (value, head, each) in [
            (Value::from("x".repeat(len)), text, 1),
            (Value::from(vec![0; len]), bytes, 1),
            (Value::Array(nils().collect()), array, 1),
            (Value::Map(nils().zip(nils()).collect()), map, 2),
        ] {
            let message = written(&value, &options);
            assert_eq!(message.len(), head + len * each, "{} of {len}", value.type_name());
            assert_eq!(written(&decode(&message, &mut [], &options).unwrap(), &options), message);
        }
    }
}

#[test]
fn elements_lie_where_they_are_read_in_place() {
    let options = Options::default();
    // Every offset of the array in its message, every length around the sizes where its head grows.
    for before in 0..9 {
        for elements in (0..40).chain(8170..8195) {
            let bytes: Vec<u8> = (0..elements * 8).map(|i| i as u8).collect();
            let array = TypedArray { dtype: DType::F64, shape: vec![elements as u64], bytes: bytes.clone().into() };
            let mut items: Vec<Value> = (0..before).map(Value::Int).collect();
            items.push(array.into());
            let message = written(&Value::Array(items), &options);
            assert_eq!((message.len() - bytes.len()) % 8, 0, "{elements} elements after {before}");
            let (start, len) = (message.as_ptr().addr(), message.len());
            let Value::Array(items) = decode_owned(message.into(), &mut [], &options).unwrap() else { panic!() };
            let Some(Value::Typed(array)) = items.last() else { panic!() };
            assert_eq!(array.bytes.as_slice(), bytes);
            let inside = (start..start + len).contains(&array.bytes.as_ptr().addr());
            assert_eq!(inside, bytes.len() >= 4096 && start.is_multiple_of(8));
        }
    }
}

#[test]
fn a_message_behind_other_bytes_is_aligned_from_its_own_start() {
    let array = || Value::from(TypedArray { dtype: DType::U16, shape: vec![4], bytes: vec![1u8; 8].into() });
    let options = Options::default();
    let mut out = vec![0xaa; 3];
    encode(&array(), &options, &mut out).unwrap();
    assert_eq!(out[3..], written(&array(), &options));
}

#[test]
fn parts_of_private_memory_stay_private_and_outlive_the_rest() {
    let options = Options::default();
    let message = written(&Value::Array(vec![vec![1u8; 5000].into(), vec![2u8; 10].into(), vec![3u8; 6000].into()]), &options);
    let Value::Array(mut items) = decode_owned(message.into(), &mut [], &options).unwrap() else { panic!() };
    let (Value::Bytes(last), Value::Bytes(small)) = (items.pop().unwrap(), items.pop().unwrap()) else { panic!() };
    drop(items);
    assert!(last.is_private() && small.is_private());
    assert_eq!((last.as_slice(), small.as_slice()), (&[3u8; 6000][..], &[2u8; 10][..]));
    let Value::Array(items) = decode_owned(Bytes::from_static(&[0x91, 0xc4, 0]), &mut [], &options).unwrap() else { panic!() };
    assert_eq!(items.len(), 1);
}

#[test]
fn limits_hold_on_both_sides_and_leave_the_output_alone() {
    let defaults = Options::default();
    let mut out = vec![7];
    for (value, options, name) in [
        (nested(129), defaults, "max_depth=128"),
        (nested(2), Options { max_depth: 1, ..defaults }, "max_depth=1"),
        (Value::Array(vec![nested(1), Value::Nil]), Options { max_items: 1, ..defaults }, "max_items=1"),
        (Value::map([("a", 1.into())]), Options { max_items: 1, ..defaults }, "max_items=1"),
        (Value::from("x".repeat(10)), Options { max_bytes: 10, ..defaults }, "max_bytes=10"),
        (Value::from(ErrorValue::new("x".repeat(10), "")), Options { max_bytes: 10, ..defaults }, "max_bytes=10"),
    ] {
        let e = encode(&value, &options, &mut out).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::TooLarge);
        assert!(e.to_string().contains(name), "{e}");
        assert_eq!(out, [7]);
        let message = written(&value, &Options { max_depth: MAX_DEPTH, ..defaults });
        let e = decode(&message, &mut [], &options).unwrap_err();
        assert!(e.kind() == ErrorKind::TooLarge && e.to_string().contains(name), "{e}");
    }
    assert_eq!(written(&decode(&written(&nested(128), &defaults), &mut [], &defaults).unwrap(), &defaults).len(), 128);
    let most = Options { max_depth: MAX_DEPTH, ..defaults };
    assert_eq!(written(&nested(MAX_DEPTH), &most).len(), MAX_DEPTH);
    assert_eq!(kind_of(encode(&Value::Nil, &Options { max_depth: MAX_DEPTH + 1, ..defaults }, &mut out)), ErrorKind::Invalid);
}

#[test]
fn the_deepest_value_fits_the_smallest_stack_of_a_host() {
    // musl's threads have 128 KiB, a Node.js worker or a glibc thread megabytes.
    let run = || {
        let options = Options { max_depth: MAX_DEPTH, ..Options::default() };
        let errors = (1..MAX_DEPTH).fold(Value::Nil, |inner, _| Value::from(ErrorValue { cause: Some(inner), ..ErrorValue::default() }));
        for value in [nested(MAX_DEPTH), errors] {
            let message = written(&value, &options);
            drop(decode(&message, &mut [], &options).unwrap());
        }
    };
    std::thread::Builder::new().stack_size(512 << 10).spawn(run).unwrap().join().unwrap();
}

#[test]
fn without_a_way_beside_buffers_become_bytes() {
    let options = Options::default();
    let value = Value::Array(vec![Value::Buffer(TransferBuffer::from_slice(b"abc").unwrap())]);
    let message = written(&value, &options);
    assert_eq!(message, [0x91, 0xc4, 3, b'a', b'b', b'c']);
    let mut value = value;
    assert!(take_buffers(&mut value, &options).unwrap().is_empty());
    assert!(matches!(&value, Value::Array(items) if matches!(items[0], Value::Buffer(_))));
}

#[test]
fn a_detached_buffer_is_said_as_such() {
    let mut buffer = TransferBuffer::from_slice(b"abc").unwrap();
    buffer.detach();
    for out_of_band in [None, Some(0)] {
        let options = Options { out_of_band, ..Options::default() };
        let moved = Value::Array(vec![Value::Buffer(std::mem::replace(&mut buffer, TransferBuffer::alloc(1).unwrap()))]);
        assert_eq!(kind_of(encode(&moved, &options, &mut Vec::new())), ErrorKind::Detached);
        buffer.detach();
    }
}

#[test]
fn elements_that_do_not_fill_their_shape_are_not_written() {
    for shape in [vec![2], vec![u64::MAX, 2], vec![1; 65]] {
        let array = TypedArray { dtype: DType::U8, shape, bytes: vec![1].into() };
        assert_eq!(kind_of(encode(&array.into(), &Options::default(), &mut Vec::new())), ErrorKind::Invalid);
    }
}

#[test]
fn long_payloads_travel_beside_without_a_copy() {
    let options = Options { out_of_band: Some(1000), ..Options::default() };
    let vec = vec![5u8; 1000];
    let address = vec.as_ptr();
    let mut value = Value::Array(vec![vec.into(), vec![6u8; 999].into()]);
    let mut message = Vec::new();
    assert_eq!(encode(&value, &options, &mut message).unwrap(), 1);
    assert!(message.len() < 1010);
    let mut buffers: Vec<_> = take_buffers(&mut value, &options).unwrap().into_iter().map(Some).collect();
    let Value::Array(items) = decode(&message, &mut buffers, &options).unwrap() else { panic!() };
    let Value::Bytes(first) = &items[0] else { panic!() };
    assert_eq!((first.as_ptr(), first.len()), (address, 1000));
}
