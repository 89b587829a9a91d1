//! What the gateway and a worker say to each other: fixed binary frames over a socket that the worker inherits.
//!
//! A frame is a head of sixteen bytes (version, kind, length of the body, number of the call; little-endian) and a body of numbers, texts
//! and tensors, each with its length before it. There are no objects, no references, no offsets and no shared memory: what is read is a
//! copy that the other side cannot change any more. Kind and length are held to what is awaited *before* room is made for the body, on
//! both sides, and tensors go by their place in the signature, so that no name can be another's.
//!
//! What it is *not*: trusted. The worker runs a stranger's model, and the gateway reads its frames as it reads a stranger's request.

use std::fmt;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tokio::io::Interest;

use super::Signature;
use super::folder::MAX_FILES;
use super::signing::manifest::MAX_NAME;
use crate::wire::tensor::{Datatype, Port, Tensor};

/// Both sides are the same program; this tells a mixture of two builds from rubbish.
const VERSION: u16 = 2;

/// Bytes of a head.
pub(super) const HEAD: usize = 16;

/// The most bytes of a frame that has no tensors and is no greeting: a signature, a reason.
pub(super) const MAX_WORDS: usize = 1 << 20;

/// The most bytes of one call's inputs together, and of the first run's.
pub(super) const MAX_INPUT: usize = 256 << 20;

/// The most bytes of a greeting: numbers, options, and names and lengths of as many files as a model has.
pub(super) const MAX_GREETING: usize = (64 << 10) + MAX_FILES * (4 + MAX_NAME + 8);

/// What goes with a greeting: the socket for stops, the engine's library, and the memory in which the model's files lie. The kernel takes 253
/// with one message.
pub(super) const MAX_DESCRIPTORS: usize = 3;

/// The most bytes of a text that a worker gives as a reason.
pub(super) const MAX_REASON: usize = 2048;

/// The most dimensions of a tensor: as many as a file may declare.
const MAX_RANK: usize = 16;

/// The most bytes that describe one tensor: place, datatype, rank, dimensions, length.
const MAX_ABOUT: usize = 2 + 1 + 1 + 8 * MAX_RANK + 8;

/// Up to so many bytes a frame is put together in one piece; past it the tensors are handed to the kernel where they lie.
const SMALL: usize = 16 << 10;

/// Bytes that are read ahead: a small frame is one system call.
const AHEAD: usize = 64 << 10;

/// How many pieces the kernel takes at once (`IOV_MAX` is 1024).
const PIECES: usize = 64;

/// The most bytes that are read or written at once. The kernel goes on copying as long as the other side keeps up.
const AT_ONCE: usize = 256 << 10;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Gateway: what to run, and how. The files come with it.
    Hello = 1,
    /// Worker: the walls that stand.
    Raised = 2,
    /// Worker: the model is loaded; its signature.
    Ready = 3,
    /// Worker: the model is not loaded, and why.
    Refused = 4,
    /// Gateway: a call.
    Run = 5,
    /// Worker: its answer.
    Answer = 6,
    /// Worker: it has none, and why.
    Failed = 7,
    /// Gateway, on the second socket: give the call up.
    Stop = 8,
}

impl Kind {
    const ALL: [Self; 8] = [Self::Hello, Self::Raised, Self::Ready, Self::Refused, Self::Run, Self::Answer, Self::Failed, Self::Stop];
}

/// Why the other side is not listened to any longer.
#[derive(Debug)]
pub(super) enum Broken {
    /// It has closed the socket, or is dead.
    Ended,
    /// The socket failed.
    Socket(io::Error),
    /// Whoever waits has waited long enough.
    GivenUp,
    /// It is another program, or another build.
    OtherVersion(u16),
    /// A frame that has no place here, or is none.
    OtherKind(u16),
    /// A frame that is larger than it may be.
    TooLarge,
    /// A body that is not what its kind says.
    Malformed(&'static str),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => f.write_str("the socket was closed"),
            Self::Socket(error) => write!(f, "the socket failed: {error}"),
            Self::GivenUp => f.write_str("it did not answer in time"),
            Self::OtherVersion(version) => write!(f, "a frame is of version {version}, not {VERSION}"),
            Self::OtherKind(kind) => write!(f, "a frame of kind {kind} has no place here"),
            Self::TooLarge => f.write_str("a frame is larger than it may be"),
            Self::Malformed(what) => write!(f, "a frame is malformed: {what}"),
        }
    }
}

impl std::error::Error for Broken {}

/// A frame, read.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) call: u64,
    pub(super) body: Bytes,
}

/// How whoever reads or writes waits for the other side.
pub(super) trait Patience {
    /// Does `io`, which reads or writes at most `most` bytes, as soon as the socket is ready for it.
    async fn ready(&mut self, interest: Interest, most: usize, io: impl FnMut() -> io::Result<usize>) -> Result<usize, Broken>;

    /// Whether to go on. It is asked whenever the other side took or gave a part only, so that nobody holds on by a byte now and then.
    fn is_left(&mut self) -> bool;
}

/// Waits in the kernel, on a socket that blocks: it asks whenever the socket's own timeout passes, too.
pub(super) struct Blocks<'a>(pub(super) &'a mut dyn FnMut() -> bool);

impl Patience for Blocks<'_> {
    async fn ready(&mut self, _: Interest, _: usize, mut io: impl FnMut() -> io::Result<usize>) -> Result<usize, Broken> {
        loop {
            match io() {
                Ok(bytes) => return Ok(bytes),
                Err(error) if is_not_now(&error) => self.is_left().then_some(()).ok_or(Broken::GivenUp)?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn is_left(&mut self) -> bool {
        (self.0)()
    }
}

/// Whether a socket has nothing, or no room, just now.
pub(super) fn is_not_now(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Self::Ended,
            _ => Self::Socket(error),
        }
    }
}

/// What `work`, which waits in the kernel alone, comes to.
pub(super) fn blocking<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    loop {
        if let Poll::Ready(done) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return done;
        }
    }
}

/// One end of the socket.
pub(super) struct Wire {
    socket: UnixStream,
    ahead: Box<[u8]>,
    from: usize,
    to: usize,
}

impl Wire {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { socket, ahead: vec![0; AHEAD].into(), from: 0, to: 0 }
    }

    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Writes a frame, and waits in the kernel as long as `patient`.
    pub(super) fn send(&self, kind: Kind, call: u64, body: &Body, patient: &mut dyn FnMut() -> bool) -> Result<(), Broken> {
        blocking(self.send_by(kind, call, body, &mut Blocks(patient)))
    }

    /// Writes a frame.
    pub(super) async fn send_by(&self, kind: Kind, call: u64, body: &Body, patience: &mut impl Patience) -> Result<(), Broken> {
        let length = body.about.len() + body.data.iter().map(Bytes::len).sum::<usize>();
        let head = head(kind, length, call)?;
        if length <= SMALL {
            let mut whole = Vec::with_capacity(HEAD + length);
            whole.extend_from_slice(&head);
            whole.extend_from_slice(&body.about);
            body.data.iter().for_each(|data| whole.extend_from_slice(data));
            return self.write(&mut [IoSlice::new(&whole)], patience).await;
        }
        let mut pieces: Vec<IoSlice<'_>> = [&head[..], &body.about].into_iter().map(IoSlice::new).collect();
        pieces.extend(body.data.iter().map(|data| IoSlice::new(data)));
        self.write(&mut pieces, patience).await
    }

    /// Writes the greeting, and the descriptors that go with it: at most [`MAX_DESCRIPTORS`].
    pub(super) fn greet(&self, body: &Body, files: &[BorrowedFd<'_>], patient: &mut dyn FnMut() -> bool) -> Result<(), Broken> {
        let head = head(Kind::Hello, body.about.len(), 0)?;
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        if !control.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(Broken::TooLarge);
        }
        let sent = rustix::net::sendmsg(&self.socket, &[IoSlice::new(&head)], &mut control, SendFlags::NOSIGNAL);
        // The socket is new and empty: sixteen bytes are taken whole.
        match sent {
            Ok(HEAD) => blocking(self.write(&mut [IoSlice::new(&body.about)], &mut Blocks(patient))),
            Ok(_) => Err(Broken::Ended),
            Err(error) => Err(Broken::Socket(error.into())),
        }
    }

    /// Reads the greeting, and the descriptors that go with it.
    pub(super) fn greeted(&mut self) -> Result<(Frame, Vec<OwnedFd>), Broken> {
        let mut head = [0; HEAD];
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut room);
        let read = rustix::net::recvmsg(&self.socket, &mut [IoSliceMut::new(&mut head)], &mut control, RecvFlags::CMSG_CLOEXEC);
        if read.map_err(|error| Broken::Socket(error.into()))?.bytes != HEAD {
            return Err(Broken::Ended);
        }
        let mut files = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                files.extend(more);
            }
        }
        let frame = blocking(self.body(head, |kind| (kind == Kind::Hello).then_some(MAX_GREETING), &mut Blocks(&mut || true)))?;
        Ok((frame, files))
    }

    async fn write(&self, mut pieces: &mut [IoSlice<'_>], patience: &mut impl Patience) -> Result<(), Broken> {
        // An empty piece at the front would look like a socket that takes nothing.
        IoSlice::advance_slices(&mut pieces, 0);
        while !pieces.is_empty() {
            // As many whole pieces as fit; where the first does not, a part of it.
            let mut room = AT_ONCE;
            let fits = |piece: &&IoSlice<'_>| room.checked_sub(piece.len()).map(|left| room = left).is_some();
            let whole = pieces.iter().take(PIECES).take_while(fits).count();
            let part = [IoSlice::new(&pieces[0][..pieces[0].len().min(AT_ONCE)])];
            let next = if whole == 0 { &part[..] } else { &pieces[..whole] };
            let most = next.iter().map(|piece| piece.len()).sum();
            match patience.ready(Interest::WRITABLE, most, || (&self.socket).write_vectored(next)).await? {
                0 => return Err(Broken::Ended),
                written => IoSlice::advance_slices(&mut pieces, written),
            }
            if !pieces.is_empty() && !patience.is_left() {
                return Err(Broken::GivenUp);
            }
        }
        Ok(())
    }

    /// The next frame, for which it waits in the kernel as long as `patient`. `most` says how large a body of that kind may be; `None` says
    /// that the kind has no place here.
    pub(super) fn receive(&mut self, most: impl Fn(Kind) -> Option<usize>, patient: &mut dyn FnMut() -> bool) -> Result<Frame, Broken> {
        blocking(self.receive_by(most, &mut Blocks(patient)))
    }

    /// The next frame.
    pub(super) async fn receive_by(&mut self, most: impl Fn(Kind) -> Option<usize>, patience: &mut impl Patience) -> Result<Frame, Broken> {
        let mut head = [0; HEAD];
        self.fill(&mut head, patience).await?;
        self.body(head, most, patience).await
    }

    /// The rest of the frame that begins with `head`.
    async fn body(
        &mut self,
        head: [u8; HEAD],
        most: impl Fn(Kind) -> Option<usize>,
        patience: &mut impl Patience,
    ) -> Result<Frame, Broken> {
        let (kind, length, call) = parse(head, most)?;
        let mut body = vec![0; length];
        self.fill(&mut body, patience).await?;
        Ok(Frame { kind, call, body: body.into() })
    }

    /// Bytes that were read ahead.
    #[cfg(test)]
    pub(super) fn unread(&self) -> usize {
        self.to - self.from
    }

    /// Waits until the other side has ended, or said what nobody asked for.
    pub(super) async fn breaks_silence(&mut self, patience: &mut impl Patience) -> Broken {
        if self.from == self.to {
            // One byte is enough, and nothing is lost where nobody waits for it to the end: there is no going on from it.
            let Self { socket, ahead, from, to } = self;
            let read = || {
                let read = (&*socket).read(&mut ahead[..1])?;
                (*from, *to) = (0, read);
                Ok(read)
            };
            match patience.ready(Interest::READABLE, 1, read).await {
                Ok(0) => return Broken::Ended,
                Ok(_) => {}
                Err(broken) => return broken,
            }
        }
        Broken::Malformed("it came unasked")
    }

    async fn fill(&mut self, mut into: &mut [u8], patience: &mut impl Patience) -> Result<(), Broken> {
        loop {
            let held = (self.to - self.from).min(into.len());
            let (now, later) = into.split_at_mut(held);
            now.copy_from_slice(&self.ahead[self.from..self.from + held]);
            self.from += held;
            into = later;
            if into.is_empty() {
                return Ok(());
            }
            if held > 0 && !patience.is_left() {
                return Err(Broken::GivenUp);
            }
            let direct = into.len() >= self.ahead.len();
            let room = if direct { &mut into[..] } else { &mut *self.ahead };
            let most = room.len().min(AT_ONCE);
            let room = &mut room[..most];
            match patience.ready(Interest::READABLE, most, || (&self.socket).read(room)).await? {
                0 => return Err(Broken::Ended),
                _ if direct && !patience.is_left() => return Err(Broken::GivenUp),
                read if direct => into = &mut std::mem::take(&mut into)[read..],
                read => (self.from, self.to) = (0, read),
            }
        }
    }
}

/// Sixteen bytes.
pub(super) fn head(kind: Kind, length: usize, call: u64) -> Result<[u8; HEAD], Broken> {
    let mut head = [0; HEAD];
    head[..2].copy_from_slice(&VERSION.to_le_bytes());
    head[2..4].copy_from_slice(&(kind as u16).to_le_bytes());
    head[4..8].copy_from_slice(&u32::try_from(length).map_err(|_| Broken::TooLarge)?.to_le_bytes());
    head[8..].copy_from_slice(&call.to_le_bytes());
    Ok(head)
}

fn parse(head: [u8; HEAD], most: impl Fn(Kind) -> Option<usize>) -> Result<(Kind, usize, u64), Broken> {
    let mut head = &head[..];
    let (version, kind, length, call) = (head.get_u16_le(), head.get_u16_le(), head.get_u32_le() as usize, head.get_u64_le());
    if version != VERSION {
        return Err(Broken::OtherVersion(version));
    }
    let known = Kind::ALL.into_iter().find(|known| *known as u16 == kind);
    let (kind, most) = known.and_then(|kind| Some((kind, most(kind)?))).ok_or(Broken::OtherKind(kind))?;
    if length > most {
        return Err(Broken::TooLarge);
    }
    Ok((kind, length, call))
}

/// A body that is being written: what is small, and the tensors' data behind it.
#[derive(Debug, Default)]
pub(super) struct Body {
    about: Vec<u8>,
    data: Vec<Bytes>,
}

impl Body {
    pub(super) fn number(mut self, number: u64) -> Self {
        self.about.extend_from_slice(&number.to_le_bytes());
        self
    }

    /// A text or a block of bytes, after its length. For what is bounded by a frame without tensors.
    pub(super) fn block(mut self, block: &[u8]) -> Self {
        self.about.extend_from_slice(&u32::try_from(block.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.about.extend_from_slice(block);
        self
    }

    pub(super) fn places(mut self, places: &[usize]) -> Self {
        self = self.number(places.len() as u64);
        places.iter().fold(self, |body, place| body.number(*place as u64))
    }

    /// `tensors`, each with its place. Their data comes at the end of the frame, so nothing may follow.
    pub(super) fn tensors<'a>(mut self, tensors: impl ExactSizeIterator<Item = (usize, &'a Tensor)>) -> Result<Self, Broken> {
        self = self.number(tensors.len() as u64);
        for (place, tensor) in tensors {
            if tensor.shape.len() > MAX_RANK {
                return Err(Broken::Malformed("a tensor has too many dimensions"));
            }
            self.about.extend_from_slice(&u16::try_from(place).map_err(|_| Broken::TooLarge)?.to_le_bytes());
            self.about.push(datatype_number(tensor.datatype));
            self.about.push(tensor.shape.len() as u8);
            tensor.shape.iter().for_each(|length| self.about.extend_from_slice(&length.to_le_bytes()));
            self.about.extend_from_slice(&(tensor.data.len() as u64).to_le_bytes());
            self.data.push(tensor.data.clone());
        }
        Ok(self)
    }

    pub(super) fn signature(mut self, signature: &Signature) -> Self {
        for ports in [&signature.inputs, &signature.instead, &signature.outputs] {
            self = self.number(ports.len() as u64);
            for port in ports {
                self = self.block(port.name.as_bytes()).number(u64::from(datatype_number(port.datatype))).number(port.shape.len() as u64);
                // No dimension is as long as that: a tensor of it would not fit into any memory.
                self = port.shape.iter().fold(self, |body, length| body.number(length.unwrap_or(u64::MAX)));
            }
        }
        self.number(signature.longest.map_or(u64::MAX, |longest| longest as u64)).number(u64::from(signature.apart))
    }

    /// Whatever bytes, as the other side may send them.
    #[cfg(fuzzing)]
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self { about: bytes.to_vec(), data: Vec::new() }
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn bytes(&self) -> Bytes {
        self.about.iter().chain(self.data.iter().flatten()).copied().collect()
    }
}

/// The most bytes of a body whose tensors have `room` together and are `count`, beside `places` and three numbers.
pub(super) fn most_with(room: usize, count: usize, places: usize) -> usize {
    room.saturating_add(count.saturating_mul(MAX_ABOUT)).saturating_add((places + 3).saturating_mul(8))
}

/// A body that is being read. What it gives is bounded by what it was given.
#[derive(Debug)]
pub(super) struct Reader(Bytes);

impl Reader {
    pub(super) fn new(body: Bytes) -> Self {
        Self(body)
    }

    pub(super) fn number(&mut self) -> Result<u64, Broken> {
        self.0.try_get_u64_le().map_err(|_| CUT)
    }

    /// A count of things that each take `least` bytes at least, so that no count is larger than what follows it.
    fn count(&mut self, least: usize) -> Result<usize, Broken> {
        let count = usize::try_from(self.number()?).map_err(|_| CUT)?;
        if count.checked_mul(least).is_some_and(|bytes| bytes <= self.0.len()) { Ok(count) } else { Err(CUT) }
    }

    pub(super) fn block(&mut self) -> Result<Bytes, Broken> {
        let length = self.0.try_get_u32_le().map_err(|_| CUT)? as usize;
        if length <= self.0.len() { Ok(self.0.split_to(length)) } else { Err(CUT) }
    }

    pub(super) fn text(&mut self) -> Result<String, Broken> {
        String::from_utf8(self.block()?.into()).map_err(|_| Broken::Malformed("a text is not UTF-8"))
    }

    /// A text for people: whatever it holds, it is short and fits on one line.
    pub(super) fn reason(&mut self) -> Result<String, Broken> {
        let block = self.block()?;
        let text = String::from_utf8_lossy(&block[..block.len().min(MAX_REASON)]);
        Ok(text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
    }

    /// Places among `ports`, none of them twice.
    pub(super) fn places(&mut self, ports: usize) -> Result<Vec<usize>, Broken> {
        let count = self.count(8)?;
        if count > ports {
            return Err(Broken::Malformed("more places than there are"));
        }
        let mut places = Vec::with_capacity(count);
        for _ in 0..count {
            let place = usize::try_from(self.number()?).ok().filter(|place| *place < ports && !places.contains(place));
            places.push(place.ok_or(Broken::Malformed("a place that is none, or twice"))?);
        }
        Ok(places)
    }

    /// The tensors that end the body: as many as `places`, of those `ports` in that order. Their data are slices of the body.
    pub(super) fn tensors(mut self, ports: &[Port], places: &[usize]) -> Result<Vec<Tensor>, Broken> {
        let other = Broken::Malformed("other tensors than were asked for");
        if self.count(2 + 1 + 1 + 8)? != places.len() {
            return Err(other);
        }
        let mut tensors = Vec::with_capacity(places.len());
        for place in places {
            let named = usize::from(self.0.try_get_u16_le().map_err(|_| CUT)?);
            let port = ports.get(*place).filter(|_| named == *place).ok_or(Broken::Malformed("other tensors than were asked for"))?;
            let datatype = datatype_of(u64::from(self.0.try_get_u8().map_err(|_| CUT)?))?;
            let rank = usize::from(self.0.try_get_u8().map_err(|_| CUT)?);
            if rank > MAX_RANK {
                return Err(Broken::Malformed("a tensor has too many dimensions"));
            }
            let shape = (0..rank).map(|_| self.number()).collect::<Result<Vec<_>, _>>()?;
            let length = usize::try_from(self.number()?).map_err(|_| CUT)?;
            tensors.push((Tensor { name: port.name.clone(), datatype, shape, data: Bytes::new() }, length));
        }
        let mut data = self.0;
        let mut next = |(tensor, length): (Tensor, usize)| {
            if length <= data.len() { Ok(Tensor { data: data.split_to(length), ..tensor }) } else { Err(CUT) }
        };
        let tensors = tensors.into_iter().map(&mut next).collect::<Result<Vec<_>, _>>()?;
        if data.is_empty() { Ok(tensors) } else { Err(REST) }
    }

    pub(super) fn signature(&mut self) -> Result<Signature, Broken> {
        let mut ports = || {
            let count = self.count(4 + 8 + 8)?;
            let mut ports = Vec::with_capacity(count);
            for _ in 0..count {
                let name = self.text()?;
                let datatype = datatype_of(self.number()?)?;
                let rank = self.count(8)?;
                let length = |length| if length == u64::MAX { None } else { Some(length) };
                let shape = (0..rank).map(|_| self.number().map(length)).collect::<Result<_, _>>()?;
                ports.push(Port { name, datatype, shape });
            }
            Ok::<_, Broken>(ports)
        };
        let (inputs, instead, outputs) = (ports()?, ports()?, ports()?);
        let longest = Some(self.number()?).filter(|longest| *longest != u64::MAX);
        let longest = longest.map(usize::try_from).transpose().map_err(|_| CUT)?;
        let apart = match self.number()? {
            0 => false,
            1 => true,
            _ => return Err(Broken::Malformed("a flag is neither 0 nor 1")),
        };
        Ok(Signature { inputs, instead, outputs, longest, apart })
    }

    /// Nothing may be left over.
    pub(super) fn end(self) -> Result<(), Broken> {
        if self.0.is_empty() { Ok(()) } else { Err(REST) }
    }
}

const CUT: Broken = Broken::Malformed("it ends too early");
const REST: Broken = Broken::Malformed("something is left over");

fn datatype_number(datatype: Datatype) -> u8 {
    Datatype::ALL.iter().position(|known| *known == datatype).map_or(u8::MAX, |place| place as u8)
}

fn datatype_of(number: u64) -> Result<Datatype, Broken> {
    let place = usize::try_from(number).ok();
    place.and_then(|place| Datatype::ALL.get(place).copied()).ok_or(Broken::Malformed("a datatype that is none"))
}

#[cfg(test)]
mod tests;
