//! The message: 512 bytes of JSON that every contender decodes into the same struct.

use serde::{Deserialize, Serialize};

/// How long the JSON of an order is.
pub const BODY_LENGTH: usize = 512;

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Order {
    pub id: u64,
    pub customer_id: String,
    pub currency: String,
    pub total: f64,
    pub items: Vec<Item>,
    pub address: Address,
    pub note: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Item {
    pub sku: String,
    pub quantity: u32,
    pub price: f64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Address {
    pub name: String,
    pub street: String,
    pub city: String,
    pub country: String,
}

/// The JSON of order `id`, always of the same length.
pub fn body(id: u64) -> Vec<u8> {
    let item = |number: u32| Item {
        sku: format!("SKU-{:06}", id % 900_000 + u64::from(number)),
        quantity: number + 1,
        price: 19.75,
    };
    let mut order = Order {
        id,
        customer_id: format!("customer-{:05}", id % 10_000),
        currency: String::from("EUR"),
        total: 118.5,
        items: (0..3).map(item).collect(),
        address: Address {
            name: String::from("Ada Lovelace"),
            street: String::from("12 Example Street"),
            city: String::from("Turin"),
            country: String::from("IT"),
        },
        note: String::new(),
    };
    let bare = serde_json::to_vec(&order).expect("an order is JSON").len();
    order.note = "x".repeat(BODY_LENGTH - bare);
    serde_json::to_vec(&order).expect("an order is JSON")
}

/// Whether order `id` is one of the `percent` that fail once; spread evenly.
pub fn fails(id: u64, percent: u64) -> bool {
    id.wrapping_mul(37) % 100 < percent
}
