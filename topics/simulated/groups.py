"""The group coordinator: members, generations, committed offsets. Kafka's classic protocol, with an eager rebalance.

Theory of operation: a group is EMPTY, PREPARING (waits until every member has joined again, or its rebalance time-out),
COMPLETING (waits for the leader's assignment) or STABLE. Every completed join is a new generation, and whoever speaks for an older
one is told so. A member that waits for a join or an assignment lives; any other must be heard of within its session time-out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, NamedTuple

from aiokafka import errors as kafka_errors

from sagalog.topics.log import Joining, Share, TopicPartition

from .network import Network, Reply

METADATA_BYTES_MAX: Final = 4_096
NO_GENERATION: Final = -1
NOTHING: Final = Share(())

Assignment = Mapping[str, Share]


class State(Enum):
    EMPTY = auto()
    PREPARING = auto()
    COMPLETING = auto()
    STABLE = auto()


class Joined(NamedTuple):
    """The answer to a join; only the leader gets `members`, with the topics of each and what it says."""

    generation: int
    member_id: str
    members: Mapping[str, Joining] | None


@dataclass(slots=True, eq=False)
class Member:
    id: str
    session_s: float
    joins_with: Joining
    expires_s: float = 0.0
    timer: asyncio.TimerHandle | None = None
    joining: Reply | None = None
    syncing: Reply | None = None
    assigned: Share = NOTHING


@dataclass(slots=True)
class Group:
    name: str
    state: State = State.EMPTY
    generation: int = 0
    leader: str | None = None
    members: dict[str, Member] = field(default_factory=dict)
    pending: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    """Ids that were given out and have not joined yet."""
    offsets: dict[TopicPartition, tuple[int, str]] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None
    """Ends the wait of PREPARING or COMPLETING."""


class Groups:
    """The coordinator of all groups. Requests take a `Reply` first; times are the event loop's."""

    def __init__(self, network: Network, exists: Callable[[TopicPartition], bool]) -> None:
        self._network = network
        self._exists = exists
        self._groups: dict[str, Group] = {}

    def group(self, name: str) -> Group:
        found = self._groups.get(name)
        if found is None:
            found = self._groups[name] = Group(name)
        return found

    def names(self) -> list[str]:
        return list(self._groups)

    def forget_topic(self, topic: str) -> None:
        for group in self._groups.values():
            for partition in [found for found in group.offsets if found.topic == topic]:
                del group.offsets[partition]

    # --- membership

    def join(self, reply: Reply, name: str, member_id: str, session_s: float, joins_with: Joining) -> None:
        group = self.group(name)
        if not member_id:
            new_id = f"{name}-{self._network.random.getrandbits(64):016x}"
            group.pending[new_id] = self._network.later(session_s, self._forget_pending, group, new_id)
            reply(new_id)
            return
        member = group.members.get(member_id)
        timer = group.pending.pop(member_id, None)
        if timer is not None:
            timer.cancel()
            member = group.members[member_id] = Member(member_id, session_s, joins_with)
            member.joining = reply
            self._prepare(group)
        elif member is None:
            reply(kafka_errors.UnknownMemberIdError())
        else:
            self._join_again(group, member, reply, joins_with)

    def _join_again(self, group: Group, member: Member, reply: Reply, joins_with: Joining) -> None:
        changed = joins_with != member.joins_with
        member.joins_with = joins_with
        match group.state:
            case State.COMPLETING if not changed:
                # It has not got the answer to its join: once more the same.
                self._heard(group, member)
                reply(self._joined(group, member))
            case State.STABLE if not changed and member.id != group.leader:
                self._heard(group, member)
                reply(self._joined(group, member))
            case _:
                member.joining = reply
                self._prepare(group)

    def _forget_pending(self, group: Group, member_id: str) -> None:
        if group.pending.pop(member_id, None) is not None:
            self._maybe_complete(group)

    def _prepare(self, group: Group) -> None:
        """Everybody has to join anew, unless that is asked for already."""
        if group.state is not State.PREPARING:
            for member in group.members.values():
                if member.syncing is not None:
                    syncing, member.syncing = member.syncing, None
                    self._heard(group, member)
                    syncing(kafka_errors.RebalanceInProgressError())
            group.state = State.PREPARING
            longest_s = max((member.session_s for member in group.members.values()), default=0.0)
            self._wait(group, longest_s, self._complete)
        self._maybe_complete(group)

    def _wait(self, group: Group, delay_s: float, work: Callable[[Group], None]) -> None:
        if group.timer is not None:
            group.timer.cancel()
        group.timer = self._network.later(delay_s, work, group)

    def _maybe_complete(self, group: Group) -> None:
        if group.state is State.PREPARING and not group.pending and all(m.joining for m in group.members.values()):
            self._complete(group)

    def _complete(self, group: Group) -> None:
        """All have joined, or those that have not are out of time: they are members no more."""
        if group.state is not State.PREPARING:
            return
        if group.timer is not None:
            group.timer.cancel()
            group.timer = None
        for member in [found for found in group.members.values() if found.joining is None]:
            self._drop(group, member)
        group.generation += 1
        if not group.members:
            group.state = State.EMPTY
            group.leader = None
            return
        if group.leader not in group.members:
            group.leader = next(iter(group.members))
        group.state = State.COMPLETING
        self._wait(group, max(member.session_s for member in group.members.values()), self._sync_overdue)
        for member in group.members.values():
            joining, member.joining = member.joining, None
            self._heard(group, member)
            assert joining is not None
            joining(self._joined(group, member))

    def _joined(self, group: Group, member: Member) -> Joined:
        if member.id != group.leader:
            return Joined(group.generation, member.id, None)
        return Joined(group.generation, member.id, {found.id: found.joins_with for found in group.members.values()})

    def _sync_overdue(self, group: Group) -> None:
        if group.state is State.COMPLETING:
            for member in [found for found in group.members.values() if found.syncing is None]:
                self._drop(group, member)
            self._prepare(group)

    def sync(self, reply: Reply, name: str, generation: int, member_id: str, assignment: Assignment | None) -> None:
        group = self.group(name)
        member = group.members.get(member_id)
        if member is None:
            reply(kafka_errors.UnknownMemberIdError())
        elif generation != group.generation:
            reply(kafka_errors.IllegalGenerationError())
        elif group.state is State.PREPARING:
            reply(kafka_errors.RebalanceInProgressError())
        elif group.state is State.STABLE:
            self._heard(group, member)
            reply(member.assigned)
        else:
            member.syncing = reply
            if member_id == group.leader and assignment is not None:
                self._assign(group, assignment)

    def _assign(self, group: Group, assignment: Assignment) -> None:
        group.state = State.STABLE
        if group.timer is not None:
            group.timer.cancel()
            group.timer = None
        for member in group.members.values():
            member.assigned = assignment.get(member.id, NOTHING)
            if member.syncing is not None:
                syncing, member.syncing = member.syncing, None
                self._heard(group, member)
                syncing(member.assigned)

    def heartbeat(self, reply: Reply, name: str, generation: int, member_id: str) -> None:
        group = self.group(name)
        member = group.members.get(member_id)
        faults = self._network.faults
        if member is not None and self._network.happens(faults.session_timeout):
            self._remove(group, member)
            member = None
        if member is None:
            reply(kafka_errors.UnknownMemberIdError())
            return
        if group.state is State.STABLE and self._network.happens(faults.rebalance):
            self._prepare(group)
        if generation != group.generation:
            reply(kafka_errors.IllegalGenerationError())
            return
        self._heard(group, member)
        reply(kafka_errors.RebalanceInProgressError() if group.state is State.PREPARING else None)

    def leave(self, reply: Reply, name: str, member_id: str) -> None:
        group = self.group(name)
        member = group.members.get(member_id)
        if member is not None:
            self._remove(group, member)
        reply(None if member is not None else kafka_errors.UnknownMemberIdError())

    # --- sessions

    def _heard(self, group: Group, member: Member) -> None:
        member.expires_s = asyncio.get_running_loop().time() + member.session_s
        if member.timer is None:
            member.timer = self._network.later(member.session_s, self._check_session, group, member)

    def _check_session(self, group: Group, member: Member) -> None:
        """One timer per member that is set again when it rings early: members are heard of more often than they die."""
        member.timer = None
        if group.members.get(member.id) is not member:
            return
        now_s = asyncio.get_running_loop().time()
        if member.joining is not None or member.syncing is not None:
            return  # it waits for us; the answer starts its session anew
        if now_s < member.expires_s:
            member.timer = self._network.later(member.expires_s - now_s, self._check_session, group, member)
        else:
            self._remove(group, member)

    def expire(self, name: str, member_id: str | None = None) -> None:
        """The sessions of a member, or of all, end now."""
        group = self.group(name)
        for member in list(group.members.values()):
            if member_id in (None, member.id):
                self._remove(group, member)

    def rebalance(self, name: str) -> None:
        """Has the members join anew."""
        group = self.group(name)
        if group.members and group.state in (State.STABLE, State.COMPLETING):
            self._prepare(group)

    def _remove(self, group: Group, member: Member) -> None:
        self._drop(group, member)
        if group.state in (State.STABLE, State.COMPLETING):
            self._prepare(group)
        else:
            self._maybe_complete(group)

    def _drop(self, group: Group, member: Member) -> None:
        group.members.pop(member.id, None)
        if member.timer is not None:
            member.timer.cancel()
            member.timer = None
        for waiting in (member.joining, member.syncing):
            if waiting is not None:
                waiting(kafka_errors.UnknownMemberIdError())
        member.joining = member.syncing = None

    # --- offsets

    def commit(
        self,
        reply: Reply,
        name: str,
        generation: int,
        member_id: str,
        offsets: Mapping[TopicPartition, tuple[int, str]],
    ) -> None:
        group = self.group(name)
        member = group.members.get(member_id)
        if member is None:
            reply(kafka_errors.UnknownMemberIdError())
        elif generation != group.generation:
            reply(kafka_errors.IllegalGenerationError())
        elif group.state is State.COMPLETING:
            reply(kafka_errors.RebalanceInProgressError())
        else:
            self._heard(group, member)
            reply(self.store(group, offsets))

    def store(self, group: Group, offsets: Mapping[TopicPartition, tuple[int, str]]) -> Exception | None:
        """What can be stored is; the first error is answered."""
        failed: Exception | None = None
        for partition, (offset, metadata) in offsets.items():
            if not self._exists(partition):
                failed = failed or kafka_errors.UnknownTopicOrPartitionError()
            elif len(metadata.encode()) > METADATA_BYTES_MAX:
                failed = failed or kafka_errors.OffsetMetadataTooLargeError()
            else:
                group.offsets[partition] = (offset, metadata)
        return failed

    def committed(self, reply: Reply, name: str, partitions: Sequence[TopicPartition]) -> None:
        found = self._groups.get(name)
        offsets = found.offsets if found is not None else {}
        reply({partition: offsets[partition] for partition in partitions if partition in offsets})
