"""Connects what a person does on the page with the session of that person."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from diffae_jax.demo import tiles
from diffae_jax.demo.sessions import Session, Sessions, Shared
from diffae_jax.runtime.errors import UserError

Answer = Callable[..., Any]  # takes a session and the values of the inputs; returns those of the outputs
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
            answer: what returns the values of the outputs.
            inputs: the components whose values `answer` gets, after the session.
            outputs: the components that its result is for.
            is_live: whether only the newest of many events matters, as for a slider.
        """

        def call(request: gr.Request, *values: Any) -> Any:
            return self._answer(answer, request, *values)

        mode = "always_last" if is_live else "multiple"
        self._on(triggers, call, inputs, outputs, trigger_mode=mode, show_progress="hidden" if is_live else "minimal")

    def listen_long(self, triggers: Any, answer: Answer, inputs: Components = (), outputs: Components = ()) -> None:
        """Answers events as `listen` does. `answer` gets a progress bar after the session."""

        def call(request: gr.Request, progress: gr.Progress = gr.Progress(), *values: Any) -> Any:  # noqa: B008
            return self._answer(answer, request, progress, *values)

        self._on(triggers, call, inputs, outputs, show_progress="full")

    def listen_click(
        self, clickable: gr.HTML, answer: Answer, inputs: Components = (), outputs: Components = ()
    ) -> None:
        """Answers a click on a tile. `answer` gets the session, its index and the inputs."""

        def call(request: gr.Request, event: gr.EventData, *values: Any) -> Any:
            index = event._data.get("index") if isinstance(event._data, dict) else None
            return self._answer(answer, request, index, *values)

        self._on(clickable.select, call, inputs, outputs, trigger_mode="multiple", show_progress="minimal")

    def follow(self, title: str, answer: Answer, inputs: Components = (), outputs: Components = ()) -> None:
        """Answers whenever a tab is opened, and whenever something changed while it is open."""

        def opened(session: Session, *values: Any):
            session.tab = title
            return answer(session, *values)

        def if_open(session: Session, *values: Any):
            return answer(session, *values) if session.tab == title else gr.skip()

        self.listen(self.tabs[title].select, opened, inputs, outputs)
        self.listen(self.changed.change, if_open, inputs, outputs)

    def _on(self, triggers: Any, call: Callable, inputs: Components, outputs: Components, **settings: Any) -> None:
        gr.on(triggers, call, list(inputs), list(outputs), api_visibility="private", **settings)

    def _answer(self, answer: Answer, request: gr.Request, *values: Any) -> Any:
        """Returns the answer. A UserError is shown, and leaves the outputs as they are."""
        try:
            with self.sessions.use(request.session_hash) as session:
                return answer(session, *values)
        except UserError as error:
            gr.Warning(tiles.escaped(str(error)), MESSAGE_SECONDS, title="")
            return gr.skip()
