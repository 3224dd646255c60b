//! Apache Kafka through rdkafka.
#![allow(dead_code)]

mod marks;
mod offsets;
