//! A record as no client library would write it: the bytes of Kafka's protocol, by hand.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime};

use super::lab::url;

/// Writes one record to partition 0, which this broker leads; header names are any bytes.
pub(crate) fn produce(topic: &str, payload: &[u8], headers: &[(&[u8], &[u8])]) {
    let batch = batch(&record(payload, headers));
    let mut body = Vec::new();
    // Produce, version 3, the first request; no client id, no transaction, all replicas, 30 s, one topic.
    body.extend([0, 0, 0, 3, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    body.extend(30_000_i32.to_be_bytes());
    body.extend(1_i32.to_be_bytes());
    body.extend((topic.len() as i16).to_be_bytes());
    body.extend(topic.as_bytes());
    // One partition, its number, its records.
    body.extend([0, 0, 0, 1, 0, 0, 0, 0]);
    body.extend((batch.len() as i32).to_be_bytes());
    body.extend(batch);
    let mut broker = TcpStream::connect(url()).expect("the broker listens");
    broker.set_read_timeout(Some(Duration::from_secs(60))).expect("it is a socket");
    let size = (body.len() as i32).to_be_bytes();
    broker.write_all(&[size.as_slice(), &body].concat()).expect("it is sent");
    let mut answer = vec![0; 4];
    broker.read_exact(&mut answer).expect("the broker answers");
    let size = i32::from_be_bytes(answer.try_into().expect("four bytes"));
    let mut answer = vec![0; size as usize];
    broker.read_exact(&mut answer).expect("the broker answers");
    // Behind the number of the request, of topics, the name, and the number of partitions and of this one.
    let error = &answer[4 + 4 + 2 + topic.len() + 4 + 4..][..2];
    assert_eq!(error, [0, 0], "the broker stores it");
}

fn batch(record: &[u8]) -> Vec<u8> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is later");
    let now = (now.as_millis() as i64).to_be_bytes();
    let mut summed = Vec::new();
    // Attributes and the last offset's distance.
    summed.extend([0; 6]);
    summed.extend([now, now].concat());
    // No producer, no sequence, one record.
    summed.extend([0xff; 14]);
    summed.extend(1_i32.to_be_bytes());
    summed.extend(record);
    let mut batch = vec![0; 8];
    batch.extend((summed.len() as i32 + 9).to_be_bytes());
    // No leader's epoch, and the second version of the format.
    batch.extend([0xff, 0xff, 0xff, 0xff, 2]);
    batch.extend(checksum(&summed).to_be_bytes());
    batch.extend(summed);
    batch
}

fn record(payload: &[u8], headers: &[(&[u8], &[u8])]) -> Vec<u8> {
    // Attributes, distances of time and offset, and no key.
    let mut record = vec![0, 0, 0, 1];
    let mut sized = |bytes: &[u8]| {
        record.extend(number(bytes.len()));
        record.extend(bytes);
    };
    sized(payload);
    let mut named = number(headers.len());
    for (name, value) in headers {
        for bytes in [name, value] {
            named.extend(number(bytes.len()));
            named.extend(*bytes);
        }
    }
    record.extend(named);
    [number(record.len()), record].concat()
}

/// Zigzag, seven bits a byte, the lowest first.
fn number(number: usize) -> Vec<u8> {
    let (mut left, mut bytes) = (number << 1, Vec::new());
    while left >= 0x80 {
        bytes.push(left as u8 | 0x80);
        left >>= 7;
    }
    bytes.push(left as u8);
    bytes
}

/// CRC-32C.
fn checksum(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 };
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), step))
}
