//! x
#[test] fn env() { for v in ["RABBITMQ_URL","RABBITMQ_MANAGEMENT_URL","REDIS_URL","REDELIVER_RABBITMQCTL","REDELIVER_REDIS_BIN","TMPDIR"] { println!("{v}={}", std::env::var(v).expect(v)); } 
 let o=std::process::Command::new(std::env::var("REDELIVER_RABBITMQCTL").unwrap()).args(["list_queues"]).status().unwrap(); assert!(o.success()); }
#[test] fn slow() { if std::env::var("SLOW").is_ok() { 
 let d=std::env::temp_dir().join("second"); assert!(std::process::Command::new("tests/servers/redis.sh").arg("start").arg(&d).status().unwrap().success());
 std::process::Command::new("sleep").arg("777").status().unwrap(); } assert!(std::env::var("BAD").is_err()); }
