"""The app on a port of this machine, until somebody stops it. Nothing here or on the page asks any other server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from importlib import resources

import gradio as gr

from bert_snli.errors import BertSnliError
from bert_snli.serving.answering import Answerer
from bert_snli.serving.app import MAX_FILE_SIZE, build_app

FIRST_PORT, PORTS_TRIED = 7860, 100
SYSTEM_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}


def serve(
    model_name_or_path: str, *, host: str = "127.0.0.1", port: int | None = None, say: Callable[[str], object] = print
) -> None:
    """Serve the page of a fine-tuned model until Ctrl-C.

    Args:
        model_name_or_path: a folder or a hub id.
        host: the address of this machine to listen at.
        port: the first free one from 7860 if None.
        say: is told where the page is.

    Raises:
        BertSnliError: no fine-tuned model; no such address; the port is taken.
    """
    port = free_port(host, port)  # before the model is loaded, which takes longer
    app = start(Answerer(model_name_or_path), host, port)
    say(f"Serving {model_name_or_path} at {app.local_url} (Ctrl-C stops it)")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        say("Stopped.")
    finally:
        app.close(verbose=False)


def start(answerer: Answerer, host: str, port: int) -> gr.Blocks:
    """Serve in threads of their own, and return at once; the app's `close()` ends it.

    Raises:
        BertSnliError: the port is taken.
    """
    app = build_app(answerer)
    try:
        app.launch(
            server_name=host,
            server_port=port,
            theme=gr.themes.Default(primary_hue="blue", neutral_hue="slate", **SYSTEM_FONTS),
            css=resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8"),
            footer_links=[],
            max_file_size=MAX_FILE_SIZE,
            prevent_thread_lock=True,
            quiet=True,
            run_history=False,  # would keep what people typed
            share=False,
            ssr_mode=False,
        )
    except OSError as error:
        raise _taken(host, port) from error
    return app


def free_port(host: str, port: int | None) -> int:
    """`port` if it can be listened at, or the first that can be.

    Raises:
        BertSnliError: it cannot; none can; `host` is no address of this machine.
    """
    candidates = range(FIRST_PORT, FIRST_PORT + PORTS_TRIED) if port is None else [port]
    try:
        family, *_, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.bind((address[0], 0))
    except OSError as error:
        raise BertSnliError(f"--host {host}: no address of this machine ({error.strerror}); try 127.0.0.1") from error
    for candidate in candidates:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address[0], candidate))
            except OSError:
                continue
            return candidate
    raise _taken(host, candidates[0])


def _taken(host: str, port: int) -> BertSnliError:
    return BertSnliError(f"--port {port}: is taken or not yours to listen at ({host}); name another one or none")
