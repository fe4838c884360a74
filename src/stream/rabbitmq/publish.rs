//! Messages on their way to the broker, and its word that it has them.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation};
use tokio::time::timeout;

use super::link::{Link, answer, explain};
use super::message::Message;

/// Messages on the way at once, at most.
const WINDOW: usize = 4096;
/// And their bytes.
const WINDOW_BYTES: usize = 8 * 1024 * 1024;
/// How long the next confirmation may take.
const CONFIRM: Duration = Duration::from_secs(10);

/// A connection that messages are published on, and nothing else: one that publishes is what the
/// broker blocks when it runs short of memory or disk, and acks must go on.
pub(super) struct Publisher {
    url: String,
    link: Option<Link>,
    channel: Channel,
}

type Sending<'a> = Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send + 'a>>;

impl Publisher {
    /// Connects.
    pub async fn open(url: &str, name: &str) -> Result<Self> {
        let link = Link::to_publish(url, name).await?;
        let channel = link.channel().await?;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        answer("ask for confirmations", confirms).await?;
        Ok(Self { url: url.to_owned(), link: Some(link), channel })
    }

    /// Whether it is of use still.
    pub fn is_open(&self) -> bool {
        self.channel.status().connected()
    }

    /// Whether the broker lets it publish.
    pub fn takes_messages(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.blocked().is_none())
    }

    /// Publishes `messages` in order. When it returns, each is in every queue it belongs to, as
    /// durably as that queue is; after an error any of them may be.
    pub async fn publish(&self, messages: &[Message]) -> Result<()> {
        let mut under_way: VecDeque<(usize, Sending)> = VecDeque::new();
        let mut bytes = 0;
        for message in messages {
            while under_way.len() >= WINDOW || (bytes > WINDOW_BYTES && !under_way.is_empty()) {
                bytes -= self.confirm(&mut under_way).await?;
            }
            let mut sending = self.send(message);
            // The first poll hands the frames over: so they go out in order.
            match poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx))).await {
                Poll::Ready(confirmed) => judge(confirmed)?,
                Poll::Pending => {
                    bytes += message.body.len();
                    under_way.push_back((message.body.len(), sending));
                }
            }
        }
        while !under_way.is_empty() {
            self.confirm(&mut under_way).await?;
        }
        Ok(())
    }

    fn send<'a>(&'a self, message: &'a Message) -> Sending<'a> {
        let sent = self.channel.basic_publish(
            message.exchange.clone(),
            message.key.clone(),
            BasicPublishOptions { mandatory: true, immediate: false },
            &message.body,
            message.properties.clone(),
        );
        Box::pin(async move { sent.await?.await })
    }

    /// Waits for the oldest message's confirmation. Its bytes.
    async fn confirm(&self, under_way: &mut VecDeque<(usize, Sending<'_>)>) -> Result<usize> {
        let Some((bytes, sending)) = under_way.pop_front() else { return Ok(0) };
        match timeout(CONFIRM, sending).await {
            Ok(confirmed) => judge(confirmed)?,
            Err(_) => match self.link.as_ref().and_then(Link::blocked) {
                Some(why) => bail!(
                    "the broker takes no messages: {why} (free memory or disk there, or raise its \
                     alarm's limit)"
                ),
                None => bail!("the broker did not confirm within {} s", CONFIRM.as_secs()),
            },
        }
        Ok(bytes)
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        if let Some(link) = self.link.take() {
            link.leave(&self.url);
        }
    }
}

fn judge(confirmed: lapin::Result<Confirmation>) -> Result<()> {
    match confirmed.map_err(explain).context("failed to publish")? {
        Confirmation::Ack(None) => Ok(()),
        // Of a batch it need not be this message that came back.
        Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
            let (exchange, key) = (&returned.exchange, &returned.routing_key);
            Err(match exchange.as_str() {
                "" => anyhow!("queue `{key}` is gone"),
                _ => anyhow!(
                    "no queue is bound to exchange `{exchange}` for what is published to it, and \
                     it would be lost (declare a group on this stream)"
                ),
            })
        }
        Confirmation::Nack(None) => bail!("the broker could not store a message"),
        Confirmation::NotRequested => bail!("the channel does not confirm"),
    }
}
