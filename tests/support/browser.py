"""Pages in a real browser without a window: Debian's chromium."""

import html
import json
import pathlib
import re
import shutil
import subprocess

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')

# Runs in the page before its own script does.
_LISTEN = """<script>
window.problems = [];
addEventListener('error', e => problems.push(String(e.message)));
addEventListener('securitypolicyviolation',
  e => problems.push(e.violatedDirective));
for (const kind of ['error', 'warn'])
  console[kind] = (...words) => problems.push(words.join(' '));
</script>"""

_HARNESS = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe style="border:0;width:{width}px;height:4000px" srcdoc="{page}"></iframe>
<pre id="found"></pre><script>
addEventListener('load', () => {{
  const window_ = document.querySelector('iframe').contentWindow;
  const measure = new window_.Function({script});
  document.getElementById('found').textContent =
    'FOUND' + JSON.stringify(measure()) + 'END';
}});
</script></body>"""


def _run(*arguments: str, profile: pathlib.Path) -> tuple[str, str]:
  done = subprocess.run(
    [
      CHROMIUM,
      '--headless=new',
      '--no-sandbox',
      '--disable-gpu',
      '--disable-dev-shm-usage',
      '--no-first-run',
      f'--user-data-dir={profile}',
      *arguments,
    ],
    capture_output=True,
    text=True,
    timeout=240,
    check=True,
  )
  return done.stdout, done.stderr


def measure(page: str, width: int, script: str, folder: pathlib.Path):
  """What `script`, a function's body, returns in a frame of some width.

  The page's security policy is left out, as it would forbid the script.
  """
  page = re.sub(r'<meta http-equiv[^>]*>', '', page)
  page = page.replace('<style>', f'{_LISTEN}<style>', 1)
  harness = folder / f'harness{width}.html'
  harness.write_text(
    _HARNESS.format(
      width=width, page=html.escape(page), script=json.dumps(script)
    )
  )
  text, _ = _run(
    '--window-size=1400,1000',
    '--virtual-time-budget=5000',
    '--dump-dom',
    harness.as_uri(),
    profile=folder / 'profile',
  )
  found = re.search(r'FOUND(.*?)END</pre>', text, re.DOTALL)
  assert found, text[-2000:]
  return json.loads(html.unescape(found[1]))


def console(path: pathlib.Path, folder: pathlib.Path) -> list[str]:
  """Lines that the page itself, as it is, has written to the console."""
  _, errors = _run(
    '--enable-logging=stderr',
    '--virtual-time-budget=3000',
    '--dump-dom',
    path.as_uri(),
    profile=folder / 'profile',
  )
  return [line for line in errors.splitlines() if ':CONSOLE' in line]
