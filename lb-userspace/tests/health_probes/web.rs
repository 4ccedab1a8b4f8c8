//! What an HTTP answer must look like, and where its time goes.

use std::time::Duration;

use lb_userspace::{
    config::{BodyMatch, Check, HeaderMatch, HttpCheck, HttpMethod},
    core::Phase,
};
use tokio::{io::AsyncWriteExt, sync::mpsc};

use crate::servers::{V4, answer_with, key, probe, request, serve};

const ANSWER: &str = "HTTP/1.1 200 OK\r\nX-Ready: yes, quite\r\ncontent-length: 18\r\n\r\n{\"ready\":  true}\r\n";

#[tokio::test]
async fn bodies_and_headers_are_looked_at_where_they_are_wanted() {
    let server = answer_with(ANSWER).await;
    let contains = |text: &str| Some(BodyMatch::Contains(text.to_owned()));
    let regex = |text: &str| Some(BodyMatch::Regex(text.to_owned()));
    let header = |name: &str, value: &str| vec![HeaderMatch { name: name.to_owned(), value: value.to_owned() }];
    for (body, headers, result) in [
        (contains("\"ready\""), Vec::new(), "L7OK 200"),
        (regex("\"ready\": *true"), Vec::new(), "L7OK 200"),
        (None, header("x-ready", "yes"), "L7OK 200"),
        (None, header("x-ready", ""), "L7OK 200"),
        (contains("false"), Vec::new(), "L7RSP: status 200, but its body has not \"false\" in it"),
        (regex("^ready"), Vec::new(), "L7RSP: status 200, but its body has not what matches /^ready/ in it"),
        (None, header("x-ready", "no"), "L7RSP: the answer has no header x-ready with \"no\" in it"),
        (None, header("x-other", ""), "L7RSP: the answer has no header x-other"),
    ] {
        let check = HttpCheck { body, headers, ..HttpCheck::default() };
        let outcome = probe(key(server, Check::Http(check))).await;
        assert_eq!(outcome.result, result);
        assert_eq!(outcome.up, result == "L7OK 200");
    }
}

#[tokio::test]
async fn a_body_that_stops_in_the_middle_is_not_what_was_expected() {
    let whole = HttpCheck { body: Some(BodyMatch::Contains("end".to_owned())), ..HttpCheck::default() };
    let cut = answer_with("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegin").await;
    let outcome = probe(key(cut, Check::Http(whole.clone()))).await;
    assert!(!outcome.up && outcome.result.starts_with("L7RSP: "), "{}", outcome.result);
    let slow = serve(V4, |mut stream| async move {
        request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegin").await;
        std::future::pending().await
    })
    .await;
    let outcome = probe(key(slow, Check::Http(whole))).await;
    assert_eq!((outcome.result.as_str(), outcome.phases.last().unwrap().0), ("L7TOUT", Phase::Body));
}

#[tokio::test]
async fn the_method_is_the_one_that_was_chosen() {
    for method in HttpMethod::ALL {
        let (tx, mut rx) = mpsc::channel(1);
        let server = serve(V4, move |mut stream| {
            let tx = tx.clone();
            async move {
                tx.send(request(&mut stream).await).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            }
        })
        .await;
        assert!(probe(key(server, Check::Http(HttpCheck { method, ..HttpCheck::default() }))).await.up);
        assert!(rx.recv().await.unwrap().starts_with(&format!("{} / HTTP/1.1\r\n", method.name())));
    }
}

#[tokio::test]
async fn phases_tell_where_a_slow_answer_was_slow() {
    let server = serve(V4, |mut stream| async move {
        request(&mut stream).await;
        tokio::time::sleep(Duration::from_millis(120)).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    })
    .await;
    let outcome = probe(key(server, Check::Http(HttpCheck::default()))).await;
    let took = |wanted| outcome.phases.iter().find(|(phase, _)| *phase == wanted).map(|(_, took)| *took).unwrap();
    assert!(took(Phase::FirstByte) >= Duration::from_millis(115), "{:?}", outcome.phases);
    let silent = serve(V4, |mut stream| async move {
        request(&mut stream).await;
        std::future::pending().await
    })
    .await;
    let outcome = probe(key(silent, Check::Http(HttpCheck::default()))).await;
    assert_eq!((outcome.result.as_str(), outcome.phases.last().unwrap().0), ("L7TOUT", Phase::FirstByte));
}
