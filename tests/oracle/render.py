"""Renders conversations with Jinja2, set up as Hugging Face's transformers sets it up.

stdin: {"template": …, "bos_token": …, "conversations": [[{"role":…, "content":…}, …], …], "variables": {…}}
stdout: a JSON string a line.
"""
import json
import sys

try:
    from jinja2.sandbox import ImmutableSandboxedEnvironment
except ModuleNotFoundError:
    sys.exit("render.py: needs Jinja2, which this Python has not (Debian: python3-jinja2)")

job = json.load(sys.stdin)
environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
template = environment.from_string(job["template"])
for messages in job["conversations"]:
    text = template.render(messages=messages, bos_token=job["bos_token"], add_generation_prompt=True,
                           **job.get("variables", {}))
    print(json.dumps(text, ensure_ascii=False))
