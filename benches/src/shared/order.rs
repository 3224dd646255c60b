//! The message: 512 bytes of JSON that every contender decodes into the same struct, or real ones from the file that
//! `REDELIVER_BENCH_INPUT` names, a JSON object a line.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// How long the JSON of an order is.
pub const BODY_LENGTH: usize = 512;
/// Names the file with real messages.
pub const INPUT_FILE: &str = "REDELIVER_BENCH_INPUT";
/// How many customers the orders are of.
const CUSTOMERS: u64 = 10_000;

/// An order, or a webhook delivery: one struct, so that every contender has one handler for both.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Order {
    pub id: u64,
    pub customer_id: String,
    pub currency: String,
    pub total: f64,
    pub items: Vec<Item>,
    pub address: Address,
    pub note: String,
    #[serde(skip_serializing)]
    pub delivery: Option<String>,
    #[serde(skip_serializing)]
    pub event: Option<String>,
    #[serde(skip_serializing)]
    pub repository: Option<String>,
    #[serde(skip_serializing)]
    pub payload: Option<Webhook>,
}

/// What a handler of webhooks would look at.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Webhook {
    pub action: Option<String>,
    pub sender: Option<Sender>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Sender {
    pub login: String,
    pub id: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Item {
    pub sku: String,
    pub quantity: u32,
    pub price: f64,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Address {
    pub name: String,
    pub street: String,
    pub city: String,
    pub country: String,
}

/// The body of message `number`: an order, or a line of the input, over and over.
pub fn body(number: u64) -> Vec<u8> {
    match input() {
        [] => order(number),
        lines => lines[number as usize % lines.len()].as_bytes().to_vec(),
    }
}

/// What the message is ordered by: its customer, or its repository.
pub fn key(number: u64) -> String {
    match input() {
        [] => format!("customer-{:05}", number % CUSTOMERS),
        lines => {
            let order: Result<Order, _> =
                serde_json::from_str(&lines[number as usize % lines.len()]);
            order.ok().and_then(|order| order.repository).unwrap_or_default()
        }
    }
}

/// Which of `partitions` has message `number`: those of one key lie in one partition, as every producer has it.
pub fn partition(number: u64, partitions: u64) -> i32 {
    let place = match input() {
        [] => number % CUSTOMERS,
        _ => key(number).bytes().map(u64::from).sum(),
    };
    (place % partitions) as i32
}

/// The lines of the file that is named, if one is.
fn input() -> &'static [String] {
    static INPUT: OnceLock<Vec<String>> = OnceLock::new();
    INPUT.get_or_init(|| {
        let Some(file) = std::env::var_os(INPUT_FILE) else { return Vec::new() };
        let text = std::fs::read_to_string(&file).expect("the input can be read");
        text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
    })
}

/// The JSON of order `id`, always of the same length.
fn order(id: u64) -> Vec<u8> {
    let item = |number: u32| Item {
        sku: format!("SKU-{:06}", id % 900_000 + u64::from(number)),
        quantity: number + 1,
        price: 19.75,
    };
    let mut order = Order {
        id,
        customer_id: format!("customer-{:05}", id % CUSTOMERS),
        currency: String::from("EUR"),
        total: 118.5,
        items: (0..3).map(item).collect(),
        address: Address {
            name: String::from("Ada Lovelace"),
            street: String::from("12 Example Street"),
            city: String::from("Turin"),
            country: String::from("IT"),
        },
        ..Order::default()
    };
    let bare = serde_json::to_vec(&order).expect("an order is JSON").len();
    order.note = "x".repeat(BODY_LENGTH - bare);
    serde_json::to_vec(&order).expect("an order is JSON")
}

/// Whether order `id` is one of the `percent` that fail once; spread evenly.
pub fn fails(id: u64, percent: u64) -> bool {
    id.wrapping_mul(37) % 100 < percent
}
