"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const count = data.tokens.length;
  const tip = document.getElementById("tip");
  const choice = {};
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // viridis, from low to high; on paper it is turned round, so that more is further from empty
  const STOPS = [
    [68, 1, 84], [71, 45, 123], [59, 82, 139], [44, 114, 142], [33, 145, 140],
    [40, 174, 128], [94, 201, 98], [173, 220, 48], [253, 231, 37],
  ];

  function colour(part) {
    const place = (dark.matches ? part : 1 - part) * (STOPS.length - 1);
    const low = Math.min(Math.floor(place), STOPS.length - 2);
    return STOPS[low].map((from, i) => Math.round(from + (place - low) * (STOPS[low + 1][i] - from)));
  }

  // affinities are stored as 16 bits each, little end first, token after token
  function unpacked(text) {
    const bytes = atob(text);
    const numbers = new Float32Array(bytes.length / 2);
    for (let i = 0; i < numbers.length; i++) {
      numbers[i] = (bytes.charCodeAt(2 * i) + 256 * bytes.charCodeAt(2 * i + 1)) / 65535;
    }
    return numbers;
  }

  // a column of a token and a row of the memory
  function value(layer, token, place) {
    const alpha = layer.alpha[token * layer.rows.length + place];
    if (choice.quantity === "theta") return alpha * layer.eta[token];
    return choice.quantity === "phi" ? alpha * layer.mu[token] : alpha;
  }

  function number(x) {
    return x === 0 ? "0" : x < 0.0005 ? x.toExponential(1) : x.toFixed(3);
  }

  // the space in front of a word, made visible
  function word(token) {
    return data.tokens[token].replace(/ /g, "·");
  }

  const layers = data.layers.map((layer, number) => {
    const section = document.getElementById("layer-" + number);
    return {
      ...layer,
      number,
      alpha: unpacked(layer.alpha),
      find: (name) => section.querySelector(name),
    };
  });

  function draw(layer) {
    const height = layer.rows.length;
    layer.order = layer.rows.map((_, place) => place);
    if (choice.order === "usage") layer.order.sort((a, b) => layer.usage[b] - layer.usage[a] || a - b);
    let most = 0;
    for (let t = 0; t < count; t++) {
      for (let i = 0; i < height; i++) most = Math.max(most, value(layer, t, i));
    }
    const canvas = layer.find(".heat");
    canvas.width = count;
    canvas.height = height;
    const context = canvas.getContext("2d");
    const image = context.createImageData(count, height);
    layer.order.forEach((place, y) => {
      for (let t = 0; t < count; t++) {
        const shown = value(layer, t, place);
        if (shown > 0) image.data.set([...colour(shown / most), 255], 4 * (y * count + t));
      }
    });
    context.putImageData(image, 0, 0);
    const ramp = [...STOPS.keys()].map((i) => "rgb(" + colour(i / (STOPS.length - 1)) + ")");
    layer.find(".ramp").style.background = "linear-gradient(to right, " + ramp + ")";
    layer.find(".most").textContent = number(most);
    layer.find(".what").textContent = document.getElementById("quantity").selectedOptions[0].text;
    size(layer);
  }

  function size(layer) {
    const height = layer.rows.length;
    const row = Math.max(2, Math.min(12, Math.floor(384 / height)));
    const room = layer.find(".tokens").clientWidth;
    const column = choice.zoom === "large" ? 18 : Math.min(40, Math.max(2, room / count));
    Object.assign(layer, { row, column });
    layer.find(".plane").style.width = column * count + "px";
    layer.find(".heat").style.height = row * height + "px";
    const gutter = layer.find(".gutter");
    const every = Math.ceil(14 / row);
    gutter.replaceChildren();
    layer.order.forEach((place, y) => {
      if (y % every === 0) label(gutter, layer.rows[place], "top", (y + 0.5) * row);
    });
    const edge = row * height;
    label(gutter, "1", "top", edge + 12);
    label(gutter, "0", "top", edge + 66);
    bars(layer, edge);
    axis(layer);
  }

  function label(parent, text, side, place) {
    const span = document.createElement("span");
    span.textContent = text;
    span.style[side] = place + "px";
    parent.append(span);
    return span;
  }

  function bars(layer, edge) {
    const svg = layer.find(".bars svg");
    const most = Math.max(...layer.usage);
    svg.setAttribute("viewBox", "0 0 1 " + layer.rows.length);
    svg.style.height = edge + "px";
    const gap = layer.row > 3 ? 0.1 : 0;
    svg.firstElementChild.setAttribute("d", layer.order.map((place, y) =>
      "M0 " + (y + gap) + "h" + layer.usage[place] / most + "v" + (1 - 2 * gap) + "H0z").join(""));
    layer.find(".bars span").style.top = edge + "px";
  }

  function axis(layer) {
    const line = layer.find(".axis");
    const words = layer.column >= 15;
    line.classList.toggle("words", words);
    line.replaceChildren();
    const step = words ? 1 : [1, 2, 5, 10, 20, 50, 100, 200, 500].find((n) => n * layer.column >= 45) || 1000;
    for (let t = 0; t < count; t++) {
      const shown = data.first + t;
      if (!words && t > 0 && shown % step !== 0) continue;
      if (!words && t > 0 && t * layer.column < 40) continue;
      const span = label(line, words ? word(t) : shown, "left", (t + (words ? 0.5 : 0)) * layer.column);
      span.classList.toggle("word", words);
    }
  }

  function mark(token) {
    for (const layer of layers) {
      const line = layer.find(".mark");
      line.hidden = token === null;
      if (token === null) continue;
      line.style.left = token * layer.column + "px";
      line.style.width = layer.column + "px";
    }
    document.querySelectorAll(".prompt .on").forEach((span) => span.classList.remove("on"));
    if (token !== null) document.querySelector(".prompt").children[token].classList.add("on");
  }

  function tell(text, x, y) {
    tip.textContent = text;
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    const left = Math.max(8, Math.min(x + 14, document.documentElement.clientWidth - width - 8));
    const above = y + 16 + height > innerHeight;
    tip.style.transform = "translate(" + left + "px, " + Math.max(4, above ? y - height - 12 : y + 16) + "px)";
  }

  function hush() {
    tip.hidden = true;
    mark(null);
  }

  function heading(token) {
    return "token " + (data.first + token).toLocaleString("en") + "  " + word(token);
  }

  function tellCell(layer, token, y, x, top) {
    const place = layer.order[y];
    const alpha = layer.alpha[token * layer.rows.length + place];
    const eta = layer.eta[token], mu = layer.mu[token];
    mark(token);
    tell(heading(token) + "\nlayer " + layer.number + ", row " + layer.rows[place] +
      (alpha === 0 ? ": not active" :
        "\naffinity α  " + number(alpha) + "\nwritten θ  " + number(alpha * eta) +
        "\nread φ  " + number(alpha * mu)) +
      "\nupdate rate η  " + number(eta) + ", merge rate μ  " + number(mu), x, top);
  }

  function tellToken(token, x, y) {
    mark(token);
    const lines = layers.map((layer) => {
      const start = token * layer.rows.length;
      const best = layer.rows.map((row, place) => [layer.alpha[start + place], row])
        .sort((a, b) => b[0] - a[0]).slice(0, 3).filter((pair) => pair[0] > 0);
      return "layer " + layer.number + ": η " + number(layer.eta[token]) + ", μ " + number(layer.mu[token]) +
        ", rows " + best.map((pair) => pair[1] + " (" + pair[0].toFixed(2) + ")").join(", ");
    });
    tell(heading(token) + "\n" + lines.join("\n"), x, y);
  }

  for (const layer of layers) {
    const canvas = layer.find(".heat");
    const at = { token: 0, y: 0 };
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      at.token = Math.min(count - 1, Math.max(0, Math.floor((event.clientX - box.left) / layer.column)));
      at.y = Math.min(layer.rows.length - 1, Math.max(0, Math.floor((event.clientY - box.top) / layer.row)));
      tellCell(layer, at.token, at.y, event.clientX, event.clientY);
    });
    canvas.addEventListener("pointerleave", hush);
    canvas.addEventListener("blur", hush);
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (event.key === "Escape") hush();
      if (!step) return;
      event.preventDefault();
      at.token = Math.min(count - 1, Math.max(0, at.token + step[0]));
      at.y = Math.min(layer.rows.length - 1, Math.max(0, at.y + step[1]));
      const frame = layer.find(".tokens");
      const left = at.token * layer.column;
      if (left < frame.scrollLeft || left + layer.column > frame.scrollLeft + frame.clientWidth) {
        frame.scrollLeft = left - frame.clientWidth / 2;
      }
      const box = canvas.getBoundingClientRect();
      tellCell(layer, at.token, at.y, box.left + left + layer.column, box.top + at.y * layer.row);
    });
  }

  const prompt = document.querySelector(".prompt");
  prompt.addEventListener("pointerover", (event) => {
    const token = [...prompt.children].indexOf(event.target);
    if (token >= 0) tellToken(token, event.clientX, event.clientY);
  });
  prompt.addEventListener("pointerleave", hush);

  function drawAll() {
    for (const name of ["quantity", "order", "zoom"]) choice[name] = document.getElementById(name).value;
    layers.forEach(draw);
  }

  for (const name of ["quantity", "order", "zoom"]) document.getElementById(name).addEventListener("change", drawAll);
  dark.addEventListener("change", drawAll);
  addEventListener("resize", () => layers.forEach(size));
  drawAll();
})();
