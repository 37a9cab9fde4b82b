"""Batches: the tokens a request gets alone, futures, cancelling, a bounded queue."""

import asyncio
import concurrent.futures
import queue
import threading
import unittest

import tokenskip
from common import QUESTION, SLOW, counted, model

QUESTIONS = [QUESTION, "What is 12 + 30?", "What is 90 - 4?", "Who is Newton in physics?", "What is 7 + 8?"]


class BatchTest(unittest.TestCase):
    def test_tokens_are_those_it_gets_alone(self):
        options = [{"threshold": None, "gen_length": 32}, {"skip_rule": "rows", **SLOW}, {"factor": 1.0},
                   {"temperature": 0.5, "seed": 3, **SLOW}, {"skip_preset": "fast", **SLOW}]
        for background in (True, False):
            with model().batch(max_requests=3, background=background) as batch:
                requests = [batch.submit(q, **o) for q, o in zip(QUESTIONS, options)]
                for request, question, o in zip(requests, QUESTIONS, options):
                    alone = counted(model().generate(question, **o).to_dict())
                    self.assertEqual(counted(request.result().to_dict()), alone)
                self.assertEqual([r.id for r in requests], [1, 2, 3, 4, 5])
                self.assertEqual(requests[1].prompt, QUESTIONS[1])

    def test_map_keeps_the_order(self):
        with model().batch() as batch:
            texts = [result.text for result in batch.map(QUESTIONS, gen_length=32)]
        self.assertEqual(texts, [model().generate(q, gen_length=32).text for q in QUESTIONS])

    def test_as_they_end(self):
        for background in (True, False):
            with model().batch(background=background) as batch:
                slow = batch.submit(QUESTION, threshold=None, gen_length=64, eos_stop=False)
                fast = batch.submit(QUESTION, gen_length=8)
                self.assertEqual(list(batch), [fast, slow])
                self.assertEqual(list(batch), [])
                batch.drain()

    def test_steps_by_hand(self):
        with model().batch(background=False) as batch:
            request = batch.submit(QUESTION, **SLOW)
            status = batch.step()
            self.assertEqual((status.in_flight, status.queued, request.done()), (1, 0, False))
            self.assertGreater(status.rows, 32)
            while not request.done():
                status = batch.step()
            self.assertEqual(status.in_flight, 0)
            self.assertEqual(request.result().nfe, 32)
        with model().batch() as batch:
            self.assertRaisesRegex(RuntimeError, "background=False", batch.step)

    def test_cancel(self):
        reached = threading.Event()
        with model().batch(max_requests=1) as batch:
            running = batch.submit(QUESTION, on_step=lambda s: reached.set(), threshold=None, gen_length=128,
                                   block_length=128)
            waiting = batch.submit(QUESTION, **SLOW)
            reached.wait(30)
            self.assertTrue(waiting.cancel())
            self.assertTrue(running.cancel())
            self.assertEqual(running.result(30).finish_reason, "cancelled")
            self.assertEqual(waiting.result(30).finish_reason, "cancelled")
            self.assertEqual(waiting.result().nfe, 0)
            self.assertFalse(running.cancel())
        event = threading.Event()
        event.set()
        with model().batch() as batch:
            self.assertEqual(batch.submit(QUESTION, cancel=event).result().finish_reason, "cancelled")

    def test_an_exception_ends_its_request_only(self):
        with model().batch() as batch:
            good = batch.submit(QUESTION, **SLOW)
            bad = batch.submit(QUESTION, on_step=lambda s: 1 // 0, **SLOW)
            rule = batch.submit(QUESTION, on_select=lambda s: [-1], **SLOW)
            self.assertIsInstance(bad.exception(), ZeroDivisionError)
            self.assertRaises(ZeroDivisionError, bad.result)
            self.assertIsInstance(rule.exception(), ValueError)
            self.assertEqual(good.result().nfe, 32)

    def test_callbacks_and_rules(self):
        steps = []
        with model().batch() as batch:
            first = batch.submit(QUESTION, on_step=steps.append,
                                 on_select=lambda s: tokenskip.select(s.candidates, "schedule", quota=2), gen_length=32)
            self.assertEqual(first.result().all_tokens,
                             model().generate(QUESTION, threshold=None, steps=16, gen_length=32).all_tokens)
        self.assertEqual(steps[-1].text, first.result().text)

    def test_submitting_from_a_callback(self):
        more = []
        with model().batch() as batch:
            first = batch.submit(QUESTION, gen_length=8,
                                 on_step=lambda s: more.append(batch.submit("Hi", gen_length=8)))
            first.result()
            self.assertTrue(more[0].result().nfe)
            done = queue.Queue()
            batch.submit(QUESTION).add_done_callback(lambda r: done.put(batch.submit("Hi", gen_length=8)))
            self.assertEqual(done.get(timeout=60).result().text, more[0].result().text)

    def test_a_bounded_queue(self):
        with model().batch(max_requests=1, max_queued=1, background=False) as batch:
            batch.submit(QUESTION)
            with self.assertRaises(tokenskip.QueueFullError):
                batch.submit(QUESTION)
            batch.drain()
            batch.submit(QUESTION).result()

    def test_refused_requests(self):
        with model().batch() as batch:
            for prompt, options in (([5, 99999], {}), (QUESTION, {"gen_length": 48}),
                                    (QUESTION, {"gen_length": 10240})):
                with self.assertRaises(tokenskip.ArgumentError):
                    batch.submit(prompt, **options)
            batch.drain()
        with self.assertRaises(ValueError):
            model().batch(max_requests=-1)
        with self.assertRaises(TypeError):
            model().batch(size=3)

    def test_closing_drops_what_is_not_over(self):
        for background in (True, False):
            batch = model().batch(max_requests=1, background=background)
            requests = [batch.submit(QUESTION, threshold=None, gen_length=128, block_length=128) for _ in range(3)]
            batch.close()
            batch.close()
            for request in requests[1:]:
                self.assertRaises(concurrent.futures.CancelledError, request.result, 30)
            self.assertRaises(tokenskip.ClosedError, batch.submit, QUESTION)

    def test_from_many_threads(self):
        expected = [model().generate(q, **SLOW).all_tokens for q in QUESTIONS]
        with model().batch(max_requests=4) as batch, concurrent.futures.ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda i: batch.submit(QUESTIONS[i % 5], **SLOW).result().all_tokens, range(20)))
        self.assertEqual(found, expected * 4)

    def test_asyncio(self):
        async def ask():
            with model().batch() as batch:
                futures = [asyncio.wrap_future(batch.submit(q, gen_length=32)) for q in QUESTIONS[:2]]
                return [r.text for r in await asyncio.gather(*futures)]

        self.assertEqual(asyncio.run(ask()), [model().generate(q, gen_length=32).text for q in QUESTIONS[:2]])

    def test_nobody_holds_the_batch(self):
        request = model().batch().submit(QUESTION, **SLOW)
        self.assertEqual(request.result(60).nfe, 32)
