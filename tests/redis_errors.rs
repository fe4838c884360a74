//! Whatever is wrong with the way to Redis, the error names component, address and remedy, and no
//! secret; and the ways there are work: a password, a user, TLS, a Redis Cluster.

#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;

use std::path::Path;
use std::process::Command;

use process::Place;
use servers::{Redis, RedisCluster, free_port};

const SECRET: &str = "hunter2";

fn topology(url: &str) -> String {
    format!(
        "[stream.events]\nkind = \"redis\"\nurl = {url}\n\n[group.writer]\nfrom = \"events\"\nto = \
         \"out\"\n\n[sink.out]\nkind = \"file\"\npath = \"out.txt\"\n"
    )
}

/// What `publish` says about a stream at `url`, with more variables of the environment.
fn publish(url: &str, variables: &[(&str, &str)]) -> Result<(), String> {
    let place = Place::new(&topology(url));
    let out = place
        .command(&["publish", "topology.toml", "--stream", "events", "x"])
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!said.contains(SECRET), "a secret is shown: {said}");
    if out.status.success() { Ok(()) } else { Err(said) }
}

#[track_caller]
fn fails(url: &str, expected: &[&str]) {
    let said = publish(&format!("\"{url}\""), &[]).unwrap_err();
    for expected in expected {
        assert!(said.contains(expected), "{expected:?} is missing in: {said}");
    }
}

fn ask(url: &str, command: &[&str]) -> redis::Value {
    let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
    let mut cmd = redis::cmd(command[0]);
    command[1..].iter().for_each(|arg| {
        cmd.arg(arg);
    });
    cmd.query(&mut connection).unwrap()
}

#[test]
fn a_server_that_is_not_there() {
    let port = free_port();
    let url = format!("redis://:{SECRET}@127.0.0.1:{port}");
    fails(&url, &["events", "nothing listens at", &format!("redis://127.0.0.1:{port} ("), "`url`"]);
    fails(
        "redis://no-such-host.invalid",
        &["the host of redis://no-such-host.invalid:6379 is not known"],
    );
    fails("redis://u:p%zz@h:x", &["is no URL of a Redis server", "redis://u:***@h:x"]);
}

#[test]
fn passwords_and_users() {
    let server = Redis::start_with(&["--requirepass", SECRET]);
    let at = |login: &str| format!("redis://{login}127.0.0.1:{}", server.port);
    fails(&at(""), &["events", "wants a password (give it in `url`"]);
    fails(&at(":wrong@"), &["refuses the user or the password (correct them in `url`"]);
    assert_eq!(publish(&format!("\"{}\"", at(&format!(":{SECRET}@"))), &[]), Ok(()));
    let admin = at(&format!(":{SECRET}@"));
    let allowed =
        ["on", &format!(">{SECRET}x"), "~events", "~{events}*", "+@read", "+@write", "+@scripting"];
    ask(&admin, &[&["ACL", "SETUSER", "writer"], &allowed[..]].concat());
    assert_eq!(publish(&format!("\"{}\"", at(&format!("writer:{SECRET}x@"))), &[]), Ok(()));
    ask(&admin, &["ACL", "SETUSER", "writer", "-xadd"]);
    fails(&at(&format!("writer:{SECRET}x@")), &["forbids this user a command or a key", "ACL"]);
}

#[test]
fn a_key_that_is_no_stream_and_a_server_that_is_a_replica() {
    let server = Redis::start();
    ask(&server.url(), &["SET", "events", "x"]);
    fails(&server.url(), &["events", "no stream of ours", "`key`"]);
    ask(&server.url(), &["REPLICAOF", "127.0.0.1", &free_port().to_string()]);
    ask(&server.url(), &["CONFIG", "SET", "replica-serve-stale-data", "yes"]);
    fails(&server.url(), &["is a replica", "primary"]);
}

/// A certificate authority, and a server's certificate from it, in a folder.
fn certificates(folder: &Path) {
    let script = "openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 \
                    -subj /CN=test-ca -addext basicConstraints=critical,CA:TRUE &&
                  openssl req -newkey rsa:2048 -nodes -keyout redis.key -out redis.csr \
                    -subj /CN=localhost &&
                  printf 'subjectAltName=DNS:localhost,IP:127.0.0.1' > ext &&
                  openssl x509 -req -in redis.csr -CA ca.crt -CAkey ca.key -CAcreateserial \
                    -out redis.crt -days 2 -extfile ext";
    let made = Command::new("sh").args(["-c", script]).current_dir(folder).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn tls() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let port = free_port();
    let server = Redis::start_with(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &file("redis.crt"),
        "--tls-key-file",
        &file("redis.key"),
        "--tls-ca-cert-file",
        &file("ca.crt"),
        "--tls-auth-clients",
        "no",
    ]);
    let url = format!("rediss://localhost:{port}");
    let trusting = [("SSL_CERT_FILE", &*file("ca.crt"))];
    assert_eq!(publish(&format!("\"{url}\""), &trusting), Ok(()));
    fails(&url, &["events", "the certificate of", &url, "is not trusted", "SSL_CERT_FILE"]);
    let plain = server.url().replace("redis://", "rediss://");
    let said = publish(&format!("\"{plain}\""), &trusting).unwrap_err();
    assert!(said.contains(&plain) && said.contains("TLS"), "{said}");
    fails(&format!("redis://127.0.0.1:{port}"), &["TLS", "rediss://"]);
}

#[test]
fn a_cluster_is_one_and_a_server_is_none() {
    let (one, other) = (Redis::start(), Redis::start());
    let list = format!("[\"{}\", \"{}\"]", one.url(), other.url());
    let said = publish(&list, &[]).unwrap_err();
    assert!(said.contains("is no node of a Redis Cluster"), "{said}");
    let cluster = RedisCluster::start();
    // One that is not there is no harm, and one alone knows the others.
    let nowhere = format!("redis://127.0.0.1:{}", free_port());
    assert_eq!(publish(&format!("[\"{nowhere}\", \"{}\"]", cluster.urls()[1]), &[]), Ok(()));
    for url in cluster.urls() {
        assert_eq!(publish(&format!("\"{url}\""), &[]), Ok(()));
    }
}

#[test]
fn what_check_finds() {
    let said = |more: &str| {
        let place = Place::new(
            &topology("\"redis://h\"").replace("\n\n[group", &format!("\n{more}\n\n[group")),
        );
        let done = place.done(&["check", "topology.toml"]);
        assert_eq!(done.status.code(), Some(2), "{}", done.stderr);
        done.stderr
    };
    let text = said("key = \"a}b\"\nfield = \"_id\"");
    assert!(text.contains("no hash tag") && text.contains("what an event travels with"), "{text}");
    let text = said(
        "[stream.again]\nkind = \"redis\"\nurl = \"redis://u:hunter2@h:6379\"\nkey = \"events\"",
    );
    assert!(text.contains("key events on redis://h:6379") && !text.contains(SECRET), "{text}");
    let place = Place::new(&topology("[\"redis://h\", \"redi://hunter2@h\"]"));
    let done = place.done(&["check", "topology.toml"]);
    let text = &done.stderr;
    assert!(
        text.contains("item 2 of `url` has another scheme")
            && text.contains("did you mean `redis`"),
        "{text}"
    );
    assert!(!text.contains(SECRET), "{text}");
}
