"""The part of the Admin service for dead letters and pending alarms."""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Any

import grpc
from holdfast.ids import dead_letter_place
from holdfast.v1 import admin_pb2

from holdfast_gateway.admin.part import AdminPart, merged

log = logging.getLogger(__name__)


class DeadLetterAdmin(AdminPart):
    """The methods of the Admin service for dead letters and pending alarms."""

    async def DeadLetters(
        self, request: admin_pb2.DeadLettersRequest, context: Any
    ) -> admin_pb2.DeadLettersResponse:
        """Return a page of the dead letters of all nodes, by shard and age."""
        await self._view(context)
        answers, unserved = await self._ask_whole(
            "DeadLetters", request, admin_pb2.DeadLettersResponse
        )
        pages = [(answer.letters, answer.more) for answer in answers.values() if answer is not None]
        letters, more = merged(pages, request.limit, lambda letter: letter.place)
        silent = [node for node, answer in answers.items() if answer is None]
        return admin_pb2.DeadLettersResponse(
            letters=letters, more=more, silent=silent, unserved=unserved
        )

    async def Alarms(
        self, request: admin_pb2.AlarmsRequest, context: Any
    ) -> admin_pb2.AlarmsResponse:
        """Return a page of the alarms of all nodes, by shard and time."""
        await self._view(context)
        answers, unserved = await self._ask_whole("Alarms", request, admin_pb2.AlarmsResponse)
        pages = [(answer.alarms, answer.more) for answer in answers.values() if answer is not None]
        alarms, more = merged(pages, request.limit, lambda alarm: alarm.place)
        silent = [node for node, answer in answers.items() if answer is None]
        return admin_pb2.AlarmsResponse(alarms=alarms, more=more, silent=silent, unserved=unserved)

    async def ChangeDeadLetters(
        self, request: admin_pb2.ChangeDeadLettersRequest, context: Any
    ) -> admin_pb2.ChangeDeadLettersResponse:
        """Replay or drop dead letters where they are."""
        view = await self._view(context)
        if bool(request.ids) == request.all:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                "give the ids of dead letters, or `all` and the fields that they have to match",
            )
        response = admin_pb2.ChangeDeadLettersResponse()
        log.warning(
            "%s of dead letters %s, asked for by %s",
            "replay" if request.replay else "drop",
            ", ".join(request.ids)
            or f"to {request.kind}/{request.key} of {request.sender_kind}/{request.sender_key}",
            self.asked_by(context),
        )
        if request.all:
            answers = await self._nodes.ask_all(
                view,
                "ChangeDeadLetters",
                request,
                admin_pb2.ChangeDeadLettersResponse,
                asked_by=self.asked_by(context),
            )
        else:
            by_owner: dict[str, list[str]] = defaultdict(list)
            for text in request.ids:
                try:
                    owner = view.owner_of(int.from_bytes(dead_letter_place(text)[:2], "big"))
                except ValueError as error:
                    response.refused[text] = str(error)
                    continue
                if owner is None:
                    response.refused[text] = "no node owns its shard at the moment"
                else:
                    by_owner[owner.id].append(text)
            answers = {}
            for node, ids in by_owner.items():
                part = admin_pb2.ChangeDeadLettersRequest(ids=ids, replay=request.replay)
                answers |= await self._nodes.ask_all(
                    view,
                    "ChangeDeadLetters",
                    part,
                    admin_pb2.ChangeDeadLettersResponse,
                    node,
                    self.asked_by(context),
                )
        for node, answer in answers.items():
            if answer is None:
                response.refused[node] = (
                    "the node did not answer, or not in time: look at the list again"
                )
            else:
                response.changed += answer.changed
                response.refused.update(answer.refused)
        return response
