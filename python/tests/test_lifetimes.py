"""Objects ended in any order, callbacks that nobody else holds, forks, signals, threads, and memory."""

import gc
import os
import signal
import subprocess
import sys
import threading
import unittest
import weakref

import tokenskip
from common import DEMO, QUESTION, ROOT, SLOW, model


def fresh():
    return tokenskip.Model.load(DEMO, device="cpu", threads=1)


def resident():
    """Bytes in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class OrderTest(unittest.TestCase):
    def test_closing_twice(self):
        made = fresh()
        session, stream, batch = made.session(), made.stream(QUESTION), made.batch()
        for thing in (made, session, stream, batch, made, session, stream, batch):
            thing.close()
        self.assertTrue(made.closed and session.closed and batch.closed)

    def test_use_after_close(self):
        made = fresh()
        session, batch, tokenizer = made.session(), made.batch(), made.tokenizer
        session.close()
        batch.close()
        made.close()
        calls = [session.step, session.result, session.probe, session.copy, lambda: session.start(QUESTION),
                 lambda: session.logits([1]), session.trace, lambda: batch.submit(QUESTION),
                 lambda: made.generate(QUESTION), lambda: made.stream(QUESTION), made.session, made.batch,
                 lambda: tokenizer.encode("a"), lambda: made.tokenizer.decode([1]), lambda: made.chat([("user", "a")])]
        for call in calls:
            with self.assertRaises(tokenskip.ClosedError):
                call()
        self.assertIsInstance(tokenskip.ClosedError(""), ValueError)
        self.assertEqual(made.config.n_layers, 12)

    def test_a_session_keeps_its_model(self):
        expected = model().generate(QUESTION, **SLOW)
        made = fresh()
        session, stream = made.session(**SLOW), made.stream(QUESTION, **SLOW)
        made.close()
        del made
        self.assertEqual(session.generate(QUESTION).text, expected.text)
        self.assertEqual(list(stream)[-1].text, expected.text)
        self.assertEqual(session.copy().result().all_tokens, expected.all_tokens)
        with fresh().batch() as batch:
            request = batch.submit(QUESTION, **SLOW)
            batch.model.close()
            self.assertEqual(request.result().text, expected.text)
        self.assertEqual(fresh().tokenizer.encode("Hello"), model().tokenizer.encode("Hello"))

    def test_any_order_of_collection(self):
        for order in range(6):
            made = fresh()
            held = [made, made.session(**SLOW).start(QUESTION)]
            held.append(held[1].copy())
            trace = held[2].trace()
            held[1].step()
            held = held[order % 3 :] + held[: order % 3]
            if order >= 3:
                held.reverse()
            del made
            while held:
                held.pop()
            trace.close()

    def test_cycles_are_collected(self):
        class Owner:
            pass

        owner = Owner()
        owner.model = fresh()
        owner.session = owner.model.session(on_step=lambda step: owner.me, **SLOW)
        owner.me = owner
        alive = weakref.ref(owner.session)
        native = owner.session._native
        owner.session.start(QUESTION)
        del owner
        gc.collect()
        self.assertIsNone(alive())
        self.assertTrue(native.closed)
        self.assertIsNone(native._pointer)

    def test_callbacks_are_kept(self):
        def make():
            seen = []
            return model().session(on_step=lambda step: seen.append(step), cancel=lambda: False, **SLOW), seen

        session, seen = make()
        gc.collect()
        session.generate(QUESTION)
        self.assertEqual(len(seen), 32)

    def test_closing_inside_its_own_callback(self):
        session = model().session(on_step=lambda step: session.close(), **SLOW)
        session.start(QUESTION)
        session.step()
        self.assertTrue(session.closed)
        self.assertRaises(tokenskip.ClosedError, session.step)
        with self.assertRaises(tokenskip.ClosedError):
            session = model().session(on_step=lambda step: session.close(), **SLOW)
            session.generate(QUESTION)
        batch = model().batch()
        request = batch.submit(QUESTION, on_step=lambda step: batch.close(), **SLOW)
        with self.assertRaises(Exception):
            request.result(30)

    def test_closing_from_another_thread(self):
        begun = threading.Event()
        session = model().session(on_step=lambda step: begun.set(), **SLOW)

        def close():
            begun.wait(30)
            session.close()

        thread = threading.Thread(target=close)
        thread.start()
        try:
            session.generate(QUESTION)
        except tokenskip.ClosedError:
            pass
        thread.join()
        self.assertTrue(session.closed)


class ThreadTest(unittest.TestCase):
    def test_one_model_many_threads(self):
        expected = model().generate(QUESTION, **SLOW).all_tokens
        found = []

        def work():
            for _ in range(3):
                found.append(model().generate(QUESTION, **SLOW).all_tokens)
                model().tokenizer.encode(QUESTION)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(found, [expected] * 12)

    def test_one_session_two_threads(self):
        """They take turns: together they make all the steps there are."""
        session = model().session(**SLOW)
        session.start(QUESTION)
        made = []

        def work():
            while not session.finished:
                step = session.step()
                if step is not None:
                    made.append(step.pass_)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sorted(made), list(range(32)))
        self.assertEqual(session.result().all_tokens, model().generate(QUESTION, **SLOW).all_tokens)

    def test_cancel_from_another_thread(self):
        begun, session = threading.Event(), model().session(on_step=lambda step: begun.set(), threshold=None,
                                                            gen_length=256, block_length=256)
        thread = threading.Thread(target=lambda: (begun.wait(30), session.cancel()))
        thread.start()
        result = session.generate(QUESTION)
        thread.join()
        self.assertEqual(result.finish_reason, "cancelled")
        self.assertLess(result.nfe, 256)
        self.assertEqual(session.start(QUESTION).step().pass_, 0)


class InterruptTest(unittest.TestCase):
    """Ctrl-C at once in a callback, and while the library computes: KeyboardInterrupt, and nothing on stderr."""

    def check(self, code):
        program = (f"import os, signal, threading, tokenskip\nmodel = tokenskip.Model.load({DEMO!r}, device='cpu')\n"
                   "def interrupt(*unused): os.kill(os.getpid(), signal.SIGINT)\n"
                   f"try:\n    {code}\n    print('not interrupted')\n"
                   "except KeyboardInterrupt:\n    print('interrupted', model.generate('What is 12 + 30?'))\n")
        environment = {**os.environ, "PYTHONPATH": os.path.join(ROOT, "python")}
        done = subprocess.run([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=120, check=False)
        self.assertEqual(done.stdout.decode().strip(), "interrupted 12+30=42. The answer is 42")

    def test_in_a_callback(self):
        self.check("model.generate('Hi', threshold=None, on_step=interrupt)")
        self.check("model.generate('Hi', threshold=None, on_select=interrupt)")
        self.check("model.generate('Hi', threshold=None, cancel=interrupt)")

    def test_between_passes(self):
        timer = "threading.Timer(0.05, interrupt).start(); "
        self.check(timer + "[model.generate('Hi', threshold=None) for _ in range(1000)]")
        self.check(timer + "[list(model.stream('Hi', threshold=None)) for _ in range(1000)]")
        self.check(timer + "[model.generate('Hi', on_step=lambda s: 0, threshold=None) for _ in range(1000)]")

    def test_in_a_trace_and_a_batch(self):
        self.check("s = model.session(threshold=None); s.trace('logits', on_record=interrupt); s.generate('Hi')")
        self.check("threading.Timer(0.2, interrupt).start(); b = model.batch(); "
                   "[b.submit('Hi', threshold=None).result() for _ in range(1000)]")

    def test_waiting_and_exit(self):
        """An interpreter that ends with everything open ends."""
        code = (f"import tokenskip\nm = tokenskip.Model.load({DEMO!r}, device='cpu')\n"
                "b = m.batch(); r = [b.submit('Hi', threshold=None) for _ in range(50)]\n"
                "s = m.stream('Hi', threshold=None); next(s)\nt = m.session().trace()\nprint('end')\n")
        environment = {**os.environ, "PYTHONPATH": os.path.join(ROOT, "python")}
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=60, check=False)
        self.assertEqual((done.returncode, done.stdout.decode().strip()), (0, "end"))


@unittest.skipUnless(hasattr(os, "fork"), "there is no fork here")
class ForkTest(unittest.TestCase):
    def test_a_child_uses_and_frees_what_the_parent_made(self):
        code = (f"import os, tokenskip\nm = tokenskip.Model.load({DEMO!r}, device='cpu')\n"
                "s = m.session(threshold=None, gen_length=32); s.start('What is 12 + 30?'); s.step()\n"
                "b = m.batch(); b.submit('Hi', gen_length=8).result()\n"
                "if os.fork() == 0:\n"
                "    list(s.steps()); text = s.result().text; s.close()\n"
                "    again = m.generate('What is 12 + 30?').text\n"
                "    try: b.submit('Hi')\n"
                "    except tokenskip.DeviceError: text += ' (no batch)'\n"
                "    b.close(); m.close(); print('child', text, again, flush=True)\n"
                "else:\n"
                "    os.wait(); print('parent', m.generate('What is 12 + 30?').text)\n")
        environment = {**os.environ, "PYTHONPATH": os.path.join(ROOT, "python")}
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=60, check=False)
        self.assertEqual(done.stdout.decode().splitlines(), [
            "child 12+30=42. The answer is 42 (no batch) 12+30=42. The answer is 42",
            "parent 12+30=42. The answer is 42"])


class MemoryTest(unittest.TestCase):
    def grows(self, work, rounds):
        """Bytes that `rounds` more rounds add, once warm."""
        for _ in range(rounds):
            work()
        gc.collect()
        before = resident()
        for _ in range(rounds):
            work()
        gc.collect()
        return resident() - before

    def test_many_sessions(self):
        def work():
            with model().session(on_step=lambda step: None, threshold=None, gen_length=8) as session:
                with session.trace("layer_0"):
                    session.start(QUESTION).step()
                session.copy().step()

        self.assertLess(self.grows(work, 150), 3 << 20)

    def test_sessions_nobody_closes(self):
        self.assertLess(self.grows(lambda: next(model().stream(QUESTION, threshold=None, gen_length=8)), 150), 3 << 20)

    def test_models_and_batches(self):
        def work():
            with fresh() as made, made.batch() as batch:
                batch.submit(QUESTION, gen_length=8).result()
                made.generate(QUESTION, gen_length=8)
                try:
                    tokenskip.Model.load("/nowhere")
                except tokenskip.FileError:
                    pass

        self.assertLess(self.grows(work, 15), 6 << 20)

    def test_text_and_ids(self):
        tokenizer = model().tokenizer
        text = "Hello, world. " * 500

        def work():
            tokenizer.decode(tokenizer.encode(text))
            model().chat([("user", text)])

        self.assertLess(self.grows(work, 200), 2 << 20)


if hasattr(signal, "SIGINT") and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # (a shell's background job ignores it)
