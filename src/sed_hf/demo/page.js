() => {
    // Pointing at a region of the image is pointing at its entry in the legend. The opacity of its mask, from 0.3 to
    // 0.7, tells the probability.
    const pixel = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
    const opacity = (mask, x, y) => {
        const box = mask.getBoundingClientRect(), {naturalWidth: width, naturalHeight: height} = mask;
        const scale = Math.min(box.width / width, box.height / height);
        const column = Math.floor((x - box.left - box.width / 2) / scale + width / 2);
        const row = Math.floor((y - box.top - box.height / 2) / scale + height / 2);
        pixel.clearRect(0, 0, 1, 1);
        pixel.drawImage(mask, column, row, 1, 1, 0, 0, 1, 1);
        return pixel.getImageData(0, 0, 1, 1).data[3] / 255;
    };
    let pointed;
    document.addEventListener("mousemove", ({target, clientX, clientY}) => {
        const masks = target.closest("#overlay .image-container")?.querySelectorAll(".mask") ?? [];
        const opacities = [...masks].map(mask => opacity(mask, clientX, clientY));
        const entry = document.querySelectorAll("#overlay .legend-item")[opacities.findIndex(value => value > 0)];
        if (entry !== pointed) {
            pointed?.dispatchEvent(new MouseEvent("mouseout", {bubbles: true}));
            entry?.dispatchEvent(new MouseEvent("mouseover", {bubbles: true}));
            pointed = entry;
        }
        if (entry) {
            const probability = Math.min(Math.max((Math.max(...opacities) - 0.3) / 0.4, 0), 1);
            document.querySelector("#pointed").textContent = `${entry.textContent} (here ${probability.toFixed(2)})`;
        }
    });
}
