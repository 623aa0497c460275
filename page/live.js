"use strict";
(() => {
  const AGAIN = 3000;
  const byId = (id) => document.getElementById(id);
  let waiting = {};
  let planned = false;

  // Changes what differs and leaves the rest, so that focus, scrolling and open parts stay.
  function update(old, fresh) {
    if (old.isEqualNode(fresh)) return;
    if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
      old.replaceWith(fresh);
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE) {
      old.nodeValue = fresh.nodeValue;
      return;
    }
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) {
        old.removeAttribute(name);
      }
    }
    for (const { name, value } of fresh.attributes) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    updateChildren(old, fresh);
  }

  function updateChildren(old, fresh) {
    const before = [...old.childNodes];
    const after = [...fresh.childNodes];
    after.forEach((node, i) => {
      if (i < before.length) update(before[i], node);
      else old.append(node);
    });
    before.slice(after.length).forEach((node) => node.remove());
  }

  function isSelectedIn(element) {
    const selection = getSelection();
    return selection && !selection.isCollapsed && selection.containsNode(element, true);
  }

  function show() {
    planned = false;
    for (const [id, html] of Object.entries(waiting)) {
      const element = byId(id);
      if (!element || isSelectedIn(element)) continue;
      delete waiting[id];
      const fresh = document.createElement("template");
      fresh.innerHTML = html; // made by the server, which escapes every text in it
      updateChildren(element, fresh.content);
    }
    begun = performance.now();
  }

  function plan() {
    if (!planned) {
      planned = true;
      requestAnimationFrame(show);
    }
  }

  function say(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  // ---- The stream of changes ----

  const connection = byId("connection");
  let lost = null;

  function connected(is) {
    document.documentElement.dataset.connected = is;
    if (is) lost = null;
    else lost ??= new Date();
    connection.className = is ? "note" : "open";
    say(
      connection,
      is
        ? "Connected: this page follows the run."
        : `Not connected since ${lost.toLocaleTimeString()}: the server is away, or its run has ended. This page looks for it again.`,
    );
  }

  function listen() {
    const source = new EventSource("api/page");
    source.onopen = () => connected(true);
    source.addEventListener("sections", (event) => {
      Object.assign(waiting, JSON.parse(event.data));
      plan();
    });
    source.onerror = () => {
      connected(false);
      // A browser tries again by itself unless it got another answer than events.
      if (source.readyState === EventSource.CLOSED) setTimeout(listen, AGAIN);
    };
  }

  // ---- Deadlines, second by second ----

  let begun = performance.now();
  setInterval(() => {
    for (const element of document.querySelectorAll("[data-seconds]")) {
      const left = Number(element.dataset.seconds) - (performance.now() - begun) / 1000;
      const whole = Math.max(0, Math.round(left));
      say(element, whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`);
    }
    if (Object.keys(waiting).length) plan();
  }, 1000);

  // ---- Actions ----

  const ARGUMENTS = {
    extend: () => ({ rounds: Number(byId("rounds").value) }),
    exclude: () => ({ client: byId("client").value.trim() }),
    include: () => ({ client: byId("client").value.trim() }),
  };

  async function act(name) {
    const said = byId("said");
    say(said, "…");
    try {
      const answer = await fetch(`api/actions/${name}`, {
        method: "POST",
        headers: {
          "Authorization": `Bearer ${byId("token").value.trim()}`,
          "Content-Type": "application/json",
        },
        body: JSON.stringify(ARGUMENTS[name]?.() ?? {}),
      });
      const text = await answer.text();
      say(said, answer.ok ? JSON.parse(text).done : text.trim());
    } catch (error) {
      say(said, `not done: ${error.message}`);
    }
  }

  for (const form of document.forms) {
    form.addEventListener("submit", (event) => event.preventDefault());
  }
  for (const button of document.querySelectorAll("[data-action]")) {
    button.addEventListener("click", () => act(button.dataset.action));
  }

  connected(false);
  say(connection, "Connecting…");
  listen();
})();
