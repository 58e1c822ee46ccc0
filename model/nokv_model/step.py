"""One operation on its way: who runs it, at which version, and what all operations share."""

from __future__ import annotations

from dataclasses import dataclass, field

from nokv.types.events import EventKind
from nokv.types.reads import Event
from nokv.types.values import ROOT_VIEW, Caller, FileType
from nokv_model.access import SETGID, SETUID, Resolver, in_group, is_root, require_depth
from nokv_model.body import EMPTY, Content
from nokv_model.sessions import Session
from nokv_model.state import State
from nokv_model.tree import Inode, Tree, file_type


@dataclass
class Step:
    """The context of one operation. It changes `state`, which the caller restores on an error."""

    state: State
    wall_ns: int
    cluster_ns: int
    caller: Caller
    session: Session | None
    seq: int
    version: int
    events: list[Event] = field(default_factory=list)
    places: set[int] = field(default_factory=set)
    """Directories below which something changes; none may lie too deep."""

    @property
    def tree(self) -> Tree:
        """The tree at present."""
        return self.state.tree

    @property
    def session_number(self) -> int:
        """The session's id; 0 for the node itself."""
        return self.session.number if self.session else 0

    @property
    def resolver(self) -> Resolver:
        """Resolves addresses as this command does."""
        return Resolver(self.tree, self.caller, self.session_number)

    def touch(self, inode: Inode, *, modified: bool = False) -> None:
        """Set ctime, and mtime where the content changed; the record is this version's now."""
        inode.ctime_ns = self.wall_ns
        if modified:
            inode.mtime_ns = self.wall_ns
        inode.version = self.version

    def make(self, mode: int, parent: Inode | None) -> Inode:
        """Make an inode of the caller's; a set-gid directory passes its group on."""
        gid = self.caller.gid
        directory = file_type(mode) == FileType.DIRECTORY
        if parent is not None and parent.mode & SETGID:
            gid = parent.gid
            if directory:
                mode |= SETGID
        foreign = not is_root(self.caller) and not in_group(self.caller, gid)
        if not directory and foreign and mode & 0o010:
            mode &= ~SETGID
        inode = Inode(
            number=self.state.next_inode,
            mode=mode,
            uid=self.caller.uid,
            gid=gid,
            atime_ns=self.wall_ns,
            mtime_ns=self.wall_ns,
            ctime_ns=self.wall_ns,
            version=self.version,
        )
        self.state.next_inode += 1
        self.tree.inodes[inode.number] = inode
        return inode

    def attach(self, parent: Inode, name: bytes, inode: Inode) -> None:
        """Give the inode a name; the directory is modified."""
        self.tree.attach(parent, name, inode)
        self.places.add(parent.number)
        self.touch(parent, modified=True)

    def remove(self, parent: Inode, name: bytes) -> None:
        """Take a name away; with its last name an inode goes, and all below it."""
        inode = self.tree.detach(parent, name)
        self.places.add(parent.number)
        self.touch(parent, modified=True)
        if inode.names:
            self.touch(inode)
        else:
            self.drop(inode)

    def drop(self, inode: Inode) -> None:
        """Let an inode without names go, and all below it."""
        gone, loosened = self.tree.drop(inode)
        for one in gone:
            self.set_content(one, EMPTY, body=0)
        self.state.loosened |= loosened

    def set_content(self, inode: Inode, content: Content, *, body: int) -> None:
        """Give the inode a content under a body id; the old body, if another, has ended."""
        if inode.body not in {0, body}:
            self.state.show(inode.body, self.version, self.cluster_ns, EMPTY)
        inode.content, inode.body = content, body
        self.state.show(body, self.version, self.cluster_ns, content)

    def resized(self, inode: Inode) -> None:
        """Note that the usage of every directory that names the inode changes."""
        self.places |= {directory for directory, _ in inode.names}

    def check_depth(self) -> None:
        """Raise NameTooLong if something changed too deep below its tree's root."""
        for number in self.places & set(self.tree.inodes):
            require_depth(self.tree, self.tree.inodes[number])

    def new_body(self) -> int:
        """Return a fresh body id."""
        body = self.state.next_body
        self.state.next_body += 1
        return body

    def clear_privileges(self, inode: Inode) -> None:
        """Clear set-uid, and set-gid where the group may execute (a caller changed the file)."""
        inode.mode &= ~SETUID
        if inode.mode & 0o010:
            inode.mode &= ~SETGID

    def event(
        self,
        kind: EventKind,
        inode: Inode,
        place: tuple[Inode, bytes],
        to: tuple[Inode, bytes] | None = None,
        names: tuple[bytes, ...] = (),
        generation: int | None = None,
    ) -> None:
        """Record what happened, unless it happened inside a staged tree."""
        parent, name = place
        self.places.add(parent.number)
        if self.tree.owner_session(parent):
            return
        self.events.append(
            Event(
                version=self.version,
                kind=kind,
                view=ROOT_VIEW,
                chain=self.tree.chain(parent),
                name=name,
                inode=inode.number,
                to_chain=self.tree.chain(to[0]) if to else (),
                to_name=to[1] if to else b"",
                size=inode.size,
                generation=inode.generation if generation is None else generation,
                session=self.session_number,
                seq=self.seq,
                names=names,
                wall_ns=self.wall_ns,
            )
        )

    def event_of(self, kind: EventKind, inode: Inode) -> None:
        """Record a change of an inode itself: its place is a directory that names it."""
        if inode.names or inode.number not in self.tree.staged:
            parent = self.tree.parent(inode) or inode.number
            self.event(kind, inode, (self.tree.inodes[parent], b""))
