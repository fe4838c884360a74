//! The servers that tests start: they come back with what they had, or without.

#[path = "support/servers.rs"]
mod servers;

use servers::{Postgres, Rabbit, Redis, RedisCluster};

fn ask(url: &str, command: &[&str]) -> String {
    let client = redis::Client::open(url).unwrap();
    let mut connection = client.get_connection().unwrap();
    let mut cmd = redis::cmd(command[0]);
    command[1..].iter().for_each(|arg| {
        cmd.arg(arg);
    });
    cmd.query::<Option<String>>(&mut connection).unwrap().unwrap_or_default()
}

#[test]
fn redis_is_killed_emptied_and_set_back() {
    let mut server = Redis::start();
    ask(&server.url(), &["SET", "a", "1"]);
    let backup = server.backup();
    ask(&server.url(), &["SET", "a", "2"]);
    server.kill();
    server.up();
    assert_eq!(ask(&server.url(), &["GET", "a"]), "2");
    server.restore(&backup);
    server.up();
    assert_eq!(ask(&server.url(), &["GET", "a"]), "1");
    server.wipe();
    server.up();
    assert_eq!(ask(&server.url(), &["GET", "a"]), "");
}

#[test]
fn a_redis_cluster_serves_every_slot() {
    let cluster = RedisCluster::start();
    let mut client = redis::cluster::ClusterClient::new(cluster.urls()).unwrap().get_connection();
    for key in ["a", "b", "c", "d", "e", "f"] {
        let cmd = redis::cmd("SET").arg(key).arg("1").query::<()>(client.as_mut().unwrap());
        cmd.unwrap();
    }
}

#[test]
fn postgres_is_killed_and_comes_back() {
    let mut server = Postgres::start();
    server.psql("postgres", "CREATE TABLE t AS SELECT 7 AS n");
    server.kill();
    server.up();
    assert_eq!(server.psql("postgres", "SELECT n FROM t"), "7");
    let (one, other) = (server.database(), server.database());
    assert_ne!(one, other);
}

#[tokio::test]
async fn rabbitmq_is_killed_emptied_and_comes_back() {
    let mut server = Rabbit::start();
    let beside = Rabbit::start();
    assert_ne!(server.url("v0"), beside.url("v0"));
    let held = async |server: &Rabbit, passive| {
        let properties = lapin::ConnectionProperties::default();
        let connection = lapin::Connection::connect(&server.url("v0"), properties).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let options =
            lapin::options::QueueDeclareOptions { passive, durable: true, ..Default::default() };
        channel.queue_declare("q".into(), options, Default::default()).await.is_ok()
    };
    assert!(held(&server, false).await);
    // A server that is killed just then may have it in its memory only.
    server.ctl(&["eval", "mnesia:sync_log()."]);
    server.kill();
    server.up();
    assert!(held(&server, true).await);
    server.wipe();
    server.up();
    assert!(!held(&server, true).await);
    assert!(server.ctl(&["list_vhosts"]).contains("v1"));
}
