"""Connects what a person does on the page with the session of that person."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from diffae_jax.demo import tiles
from diffae_jax.demo.sessions import Session, Sessions, Shared
from diffae_jax.runtime.errors import UserError

Answer = Callable[..., Any]  # takes a session and the values of the inputs; returns or yields those of the outputs
Components = Sequence[gr.blocks.Block]

MESSAGE_SECONDS = 10


class Page:
    """What the picker and the tabs use to build themselves.

    Attributes:
        shared: the model and the images that all sessions share.
        sessions: the sessions of all people.
        changed: a number that grows when the chosen image, the steps or the slice changed.
        tabs: the tabs by title.
        picker: the images to choose from.
    """

    def __init__(self, shared: Shared):
        self.shared, self.sessions = shared, Sessions(shared)
        self.changed = gr.State(0)
        self.tabs: dict[str, gr.Tab] = {}
        self.picker: gr.HTML

    def listen(
        self,
        triggers: Any,
        answer: Answer,
        inputs: Components = (),
        outputs: Components = (),
        *,
        is_live: bool = False,
    ) -> None:
        """Answers events.

        A UserError becomes a message on the page, and the outputs stay as they are.

        Args:
            triggers: an event or several, such as `button.click`.
            answer: a function, or a generator that yields intermediate results.
            inputs: the components whose values `answer` gets, after the session.
            outputs: the components that its result is for.
            is_live: whether only the newest of many events matters, as for a slider.
        """
        self._on(triggers, _with_messages(self.sessions, answer), inputs, outputs, is_live)

    def listen_click(
        self, clickable: gr.HTML, answer: Answer, inputs: Components = (), outputs: Components = ()
    ) -> None:
        """Answers a click on a tile. `answer` gets the session, its index and the inputs."""
        call = _with_messages(self.sessions, answer)

        def clicked(request: gr.Request, event: gr.EventData, *values: Any):
            index = event._data.get("index") if isinstance(event._data, dict) else None
            return call(request, index, *values)

        self._on(clickable.select, clicked, inputs, outputs, False)

    def follow(self, title: str, answer: Answer, inputs: Components = (), outputs: Components = ()) -> None:
        """Answers whenever a tab is opened, and whenever something changed while it is open."""

        def opened(session: Session, *values: Any):
            session.tab = title
            return answer(session, *values)

        def if_open(session: Session, *values: Any):
            return answer(session, *values) if session.tab == title else gr.skip()

        self.listen(self.tabs[title].select, opened, inputs, outputs)
        self.listen(self.changed.change, if_open, inputs, outputs)

    def _on(self, triggers: Any, call: Callable, inputs: Components, outputs: Components, is_live: bool) -> None:
        gr.on(
            triggers,
            call,
            list(inputs),
            list(outputs),
            trigger_mode="always_last" if is_live else "multiple",
            show_progress="hidden" if is_live else "minimal",
            api_visibility="private",
        )


def _with_messages(sessions: Sessions, answer: Answer) -> Callable:
    """Returns an event handler of Gradio, which turns a UserError into a message."""

    def call(request: gr.Request, *values: Any):
        try:
            return answer(sessions.of(request.session_hash), *values)
        except UserError as error:
            return _say(error)

    def call_generator(request: gr.Request, *values: Any) -> Iterator[Any]:
        try:
            yield from answer(sessions.of(request.session_hash), *values)
        except UserError as error:
            yield _say(error)

    return call_generator if inspect.isgeneratorfunction(answer) else call


def _say(error: UserError) -> Any:
    """Shows a message, and returns what leaves the outputs as they are."""
    gr.Warning(tiles.escaped(str(error)), MESSAGE_SECONDS, title="")
    return gr.skip()
