"""Every call of OpenCV 4's cv2.dnn for a Darknet network, one per line, and what OpenCV answers.

`make record-opencv4` runs this file under OpenCV 4, which records the answers in opencv4_calls.json; test_cv2dnn_calls.py runs
the same calls on gpudarknet.cv2dnn and compares. Names in a call: `dnn` the module; `net` a network with two [yolo] layers and
`x` its input; `cfg` and `weights` its paths; `v2` and `classes` networks with [region] and [softmax]; `frame` an image; `folder`,
which is empty; `run`, `copies`, `detector` and others below. All but the last expression of a line are statements.
"""

from __future__ import annotations

import ast
import json
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
import opencv4

RECORD = Path(__file__).with_suffix(".json")

READ = """
dnn.readNetFromDarknet(cfg)
dnn.readNetFromDarknet(cfg, weights)
dnn.readNetFromDarknet(cfg, None)
dnn.readNetFromDarknet(cfg, '')
dnn.readNetFromDarknet(cfgFile=cfg, darknetModel=weights)
dnn.readNetFromDarknet(Path(cfg), Path(weights))
dnn.readNetFromDarknet(cfg.encode(), weights.encode())
dnn.readNetFromDarknet(np.fromfile(cfg, np.uint8))
dnn.readNetFromDarknet(np.fromfile(cfg, np.uint8), np.fromfile(weights, np.uint8))
dnn.readNetFromDarknet(bufferCfg=np.fromfile(cfg, np.uint8), bufferModel=np.fromfile(weights, np.uint8))
dnn.readNetFromDarknet(bytearray(Path(cfg).read_bytes()), bytearray(Path(weights).read_bytes()))
dnn.readNetFromDarknet(list(Path(cfg).read_bytes()))
dnn.readNetFromDarknet(np.fromfile(cfg, np.int8))
dnn.readNetFromDarknet(Path(cfg).read_bytes(), Path(weights).read_bytes())
dnn.readNetFromDarknet(np.fromfile(cfg, np.uint8), weights)
dnn.readNetFromDarknet(Path(cfg).read_text())
dnn.readNetFromDarknet(weights, cfg)
dnn.readNetFromDarknet(cfg, cfg)
dnn.readNetFromDarknet('none.cfg')
dnn.readNetFromDarknet('none.cfg', weights)
dnn.readNetFromDarknet(cfg, 'none.weights')
dnn.readNetFromDarknet(str(folder))
dnn.readNetFromDarknet(None)
dnn.readNetFromDarknet('')
dnn.readNetFromDarknet()
dnn.readNetFromDarknet(5)
dnn.readNetFromDarknet(cfg, 5)
dnn.readNetFromDarknet(cfg, weights, 'darknet')
dnn.readNetFromDarknet(cfg, model=weights)
dnn.readNetFromDarknet(np.zeros(0, np.uint8))
p = folder / 'empty.cfg'; p.touch(); dnn.readNetFromDarknet(str(p))
p = folder / 'empty.weights'; p.touch(); dnn.readNetFromDarknet(cfg, str(p))
p = folder / 'half.weights'; p.write_bytes(Path(weights).read_bytes()[:3000]); dnn.readNetFromDarknet(cfg, str(p))
p = folder / 'long.weights'; p.write_bytes(Path(weights).read_bytes() + b'1234'); dnn.readNetFromDarknet(cfg, str(p))
dnn.readNet(weights, cfg)
dnn.readNet(cfg, weights)
dnn.readNet(weights, cfg, '')
dnn.readNet(weights, cfg, None)
dnn.readNet(weights, cfg, 'darknet')
dnn.readNet(weights, cfg, 'Darknet')
dnn.readNet(cfg, weights, 'darknet')
dnn.readNet(model=weights, config=cfg, framework='darknet')
dnn.readNet(framework='darknet', model=weights, config=cfg)
dnn.readNet(Path(weights), Path(cfg))
dnn.readNet(cfg)
dnn.readNet(cfg, None)
dnn.readNet(cfg, None, None)
dnn.readNet(cfg, '', 'darknet')
dnn.readNet(weights)
dnn.readNet(weights, None, None)
dnn.readNet('darknet', np.fromfile(weights, np.uint8), np.fromfile(cfg, np.uint8))
dnn.readNet('Darknet', np.fromfile(weights, np.uint8), np.fromfile(cfg, np.uint8))
dnn.readNet('darknet', bufferModel=np.fromfile(weights, np.uint8), bufferConfig=np.fromfile(cfg, np.uint8))
dnn.readNet(framework='darknet', bufferModel=np.fromfile(weights, np.uint8), bufferConfig=np.fromfile(cfg, np.uint8))
dnn.readNet('darknet', bytearray(Path(weights).read_bytes()), bytearray(Path(cfg).read_bytes()))
dnn.readNet('darknet', np.fromfile(weights, np.uint8))
dnn.readNet(np.fromfile(weights, np.uint8), np.fromfile(cfg, np.uint8), 'darknet')
a, b = copies('a.txt', 'b.backup'); dnn.readNet(b, a, 'darknet')
a, b = copies('a.txt', 'b.backup'); dnn.readNet(a, b, 'darknet')
a, b = copies('a.txt', 'b.backup'); dnn.readNet(b, a)
a, b = copies('a.txt', 'b.backup'); dnn.readNet(b, cfg)
a, b = copies('a.txt', 'b.backup'); dnn.readNet(cfg, b)
a, b = copies('a.txt', 'b.backup'); dnn.readNet(cfg, b, 'darknet')
a, b = copies('a.txt', 'b.backup'); dnn.readNet(weights, a)
a, b = copies('a.txt', 'b.backup'); dnn.readNet(a, weights)
a, b = copies('a', 'b'); dnn.readNet(b, a, 'darknet')
a, b = copies('a', 'b'); dnn.readNet(b, a)
a, b = copies('a.cfg.txt', 'b.weights.1'); dnn.readNet(b, cfg)
a, b = copies('A.CFG', 'B.WEIGHTS'); dnn.readNet(b, a)
a, b = copies('A.CFG', 'B.WEIGHTS'); dnn.readNetFromDarknet(a, b)
dnn.readNet(weights, cfg, 'caffe')
dnn.readNet(weights, cfg, 'none')
dnn.readNet(weights, cfg, 'onnx')
a, b = copies('a.txt', 'b.pb'); dnn.readNet(b, a, 'darknet')
dnn.readNet('none.weights', 'none.cfg')
dnn.readNet('none.onnx')
dnn.readNet('none')
dnn.readNet('')
dnn.readNet()
dnn.readNet(5, 6)
dnn.readNetFromDarknet(cfg + '\\0')
dnn.readNetFromDarknet(np.str_(cfg), np.str_(weights))
dnn.readNetFromDarknet((cfg, weights))
dnn.readNetFromDarknet(memoryview(Path(cfg).read_bytes()))
dnn.readNetFromDarknet(np.fromfile(cfg, np.uint8), None)
dnn.readNetFromDarknet(np.repeat(np.fromfile(cfg, np.uint8), 2)[::2])
a, b = copies('é ü.cfg', '日本.weights'); dnn.readNetFromDarknet(a, b)
p = folder / 'x.cfg'; p.write_bytes(b'\\xef\\xbb\\xbf' + Path(cfg).read_bytes()); dnn.readNetFromDarknet(str(p))
p = folder / 'x.cfg'; p.write_text('hello'); dnn.readNetFromDarknet(str(p))
p = folder / 'x.cfg'; p.write_text('[net]'); dnn.readNetFromDarknet(str(p))
p = folder / 'x.weights'; p.write_bytes(b'<html>' * 5000); dnn.readNetFromDarknet(cfg, str(p))
n = header(1, 0, 0, 5, 0); n.setInput(x); n.forward()
n = header(0, 3, 0, 5, 0); n.setInput(x); n.forward()
a, b = copies('a.cfg', 'b.conv.137'); dnn.readNet(b, a)
a, b = copies('a.cfg', 'b.onnx'); dnn.readNet(b, a)
a, b = copies('a.prototxt', 'b.weights'); dnn.readNet(b, a)
n = dnn.readNetFromDarknet(cfg); n.setInput(x); n.forward()
n = sized('width=608'); n.setInput(x); n.forward()
n = sized('width=100'); n.setInput(x); n.forward()
"""

INPUT = """
net.setInput(x)
net.setInput(x); net.forward()
net.setInput(blob=x, name='', scalefactor=1.0, mean=(0, 0, 0)); net.forward()
net.setInput(x, 'data'); net.forward()
net.setInput(x, None); net.forward()
net.setInput(x, '_input')
net.setInput(x, 'none')
net.setInput(x, ''); net.forward('conv_0')
net.setInput(x, '', 0.5); net.forward('conv_0')
net.setInput(x, '', 0.5, (0.1, 0.2, 0.3)); net.forward('conv_0')
net.setInput(x, '', 0.5, (0.1, 0.2)); net.forward('conv_0')
net.setInput(x, '', 0.5, 0.1); net.forward('conv_0')
net.setInput(x, '', 0.5, (0.1, 0.2, 0.3, 0.4)); net.forward('conv_0')
net.setInput(x, '', 0.5, (0.1, 0.2, 0.3, 0.4, 0.5))
net.setInput(x, '', 0.5, None); net.forward('conv_0')
net.setInput(x, '', None, None); net.forward('conv_0')
net.setInput(x, mean=[0.1, 0.2, 0.3]); net.forward('conv_0')
net.setInput(x, mean=np.array([0.1, 0.2, 0.3])); net.forward('conv_0')
net.setInput(x, scalefactor=2); net.forward('conv_0')
net.setInput(x, scalefactor=(0.5, 0.5, 0.5))
net.setInput(x, scalefactor='a')
net.setInput(x, swapRB=True)
net.setInput(x.astype(np.float64)); net.forward('conv_0')
net.setInput(x.astype(np.float16)); net.forward('conv_0')
net.setInput((x * 255).astype(np.uint8)); net.forward('conv_0')
net.setInput((x * 255).astype(np.uint8), scalefactor=1 / 255); net.forward('conv_0')
net.setInput((x * 255).astype(np.uint8), '', 1 / 255, (10, 20, 30)); net.forward('conv_0')
net.setInput((x * 100).astype(np.int8)); net.forward('conv_0')
net.setInput((x * 255).astype(np.int32)); net.forward('conv_0')
net.setInput((x * 255).astype(np.int64)); net.forward('conv_0')
net.setInput(x > 0.5)
net.setInput(x.astype(np.complex64))
net.setInput(cv2.UMat(x)); net.forward('conv_0')
net.setInput(x[:, :, ::-1]); net.forward('conv_0')
net.setInput(x[:, ::-1]); net.forward('conv_0')
net.setInput(None)
net.setInput(None); net.forward()
net.setInput(np.zeros((0,), np.float32)); net.forward()
net.setInput(x[0])
net.setInput(x[0]); net.forward()
net.setInput(x[0, 0]); net.forward()
net.setInput(x[:, :1]); net.forward()
net.setInput(x.transpose(0, 2, 3, 1)); net.forward()
net.setInput(frame); net.forward()
net.setInput(5); net.forward()
net.setInput('x')
net.setInput(x.tolist())
net.setInput([1, 2, 3])
net.setInput()
y = x.copy(); net.setInput(y); y[:] = 0; net.forward('conv_0')
net.setInput(x[:, :, ::2, ::2]); net.forward()
net.setInput(x.transpose(0, 1, 3, 2)); net.forward(['yolo_13', 'yolo_19'])
net.setInput(x[:, :, :33]); net.forward()
net.setInput(x[:, :, ::2, ::2]); net.forward(); net.setInput(x); net.forward()
net.setInput(np.concatenate([x, x[:, ::-1]])); net.forward()
net.setInput(np.concatenate([x, x, x])); net.forward(['yolo_13', 'conv_0'])
net.setInput(np.concatenate([x, x])); net.forward(); net.setInput(x); net.forward()
net.setInputsNames(['data'])
net.setInputsNames(['image']); net.setInput(x, 'image'); net.forward('conv_0')
net.setInputsNames(['image']); net.setInput(x); net.forward('conv_0')
net.setInputsNames(['image']); net.setInput(x, 'data')
net.setInputsNames(['image', 'other']); net.setInput(x, 'image'); net.forward('conv_0')
net.setInputsNames(inputBlobNames=['image'])
net.setInputShape('data', (1, 3, 64, 96))
net.setInputShape(inputName='data', shape=[1, 3, 32, 48])
net.setInputShape('data', (1, 3, 32, 48)); net.setInput(x); net.forward()
net.setInputShape('none', (1, 3, 32, 48))
net.setInput(x[None]); net.forward('conv_0')
net.setInput(np.zeros((0, 3, 64, 96), np.float32)); net.forward()
net.setInput(np.asfortranarray(x)); net.forward('conv_0')
net.setInput((x * 200).astype(np.int16)); net.forward('conv_0')
net.setInput(x, scalefactor=0); net.forward('conv_0')
net.setInput(x, '', -1.0, 0.1); net.forward('conv_0')
net.setInput(np.concatenate([x, x]), '', 1, (0.1, 0.2, 0.3)); net.forward('conv_0')
net.setInput(np.ones((1, 3, 65, 97), np.float32)); net.forward()
net.setInput(np.ones((1, 3, 1, 1), np.float32)); net.forward('conv_0')
net.setInput(x, 'data\\0x'); net.forward('conv_0')
v2.setInput(np.concatenate([x, x[:, ::-1]])); v2.forward()
classes.setInput(np.concatenate([x, x])[:, :, :, :64]); classes.forward()
classes.setInput(x); classes.forward()
n = dnn.readNetFromDarknet(cfg, weights); net.setInput(x); n.setInput(x / 2); (net.forward(), n.forward())
net.setInputsNames('ab'); net.setInput(x, 'a'); net.forward('conv_0')
net.setInputsNames({'data': 1})
net.setInputsNames(np.array(1))
net.setInputShape('data', {})
net.setInputShape('data', (3, 64, 96))
"""

FORWARD = """
net.forward()
net.forward('conv_0')
net.setInput(x); net.forward('')
net.setInput(x); net.forward(None)
net.setInput(x); net.forward('yolo_13')
net.setInput(x); net.forward(outputName='yolo_13')
net.setInput(x); net.forward(np.str_('yolo_13'))
net.setInput(x); net.forward(['yolo_13', 'yolo_19'])
net.setInput(x); net.forward(('yolo_13', 'yolo_19'))
net.setInput(x); net.forward(['yolo_19', 'yolo_13'])
net.setInput(x); net.forward(['yolo_13', 'yolo_13'])
net.setInput(x); net.forward(np.array(['yolo_13', 'yolo_19']).tolist())
net.setInput(x); net.forward(net.getUnconnectedOutLayersNames())
net.setInput(x); names = net.getLayerNames(); net.forward([names[i - 1] for i in net.getUnconnectedOutLayers()])
net.setInput(x); net.forward([net.getLayerNames()[i - 1] for i in net.getUnconnectedOutLayers().flatten()])
net.setInput(x); names = net.getLayerNames(); net.forward([names[i[0] - 1] for i in net.getUnconnectedOutLayers()])
net.setInput(x); net.forward(outBlobNames=['yolo_13'])
net.setInput(x); net.forward(outBlobNames=('yolo_13', 'yolo_19'))
net.setInput(x); net.forward([])
net.setInput(x); net.forward(outBlobNames=[])
net.setInput(x); net.forward(None, 'yolo_13')
net.setInput(x); net.forward(None, ['yolo_13'])
net.setInput(x); net.forward([np.zeros((288, 9), np.float32)], 'yolo_13')
net.setInput(x); net.forward(outputBlobs=None, outputName='yolo_13')
net.setInput(x); o = np.zeros((288, 9), np.float32); r = net.forward(outBlobNames=['yolo_13'], outputBlobs=[o]); (r[0] is o, o)
net.setInput(x); o = np.zeros((2, 9), np.float32); r = net.forward(outBlobNames=['yolo_13'], outputBlobs=[o]); (r[0] is o, r[0])
net.setInput(x); o = np.zeros((288, 9), np.float32); r = net.forward([o], 'yolo_13'); r[0] is o
net.setInput(x); net.forward('none')
net.setInput(x); net.forward(['none'])
net.setInput(x); net.forward(['yolo_13', 'none'])
net.setInput(x); net.forward('_input')
net.setInput(x); net.forward('data')
net.setInput(x); net.forward(3)
net.setInput(x); net.forward('yolo_13', 'yolo_19')
net.setInput(x); net.forward(layer='yolo_13')
net.setInput(x); net.forwardAndRetrieve(['yolo_13', 'yolo_19'])
net.setInput(x); net.forwardAndRetrieve(outBlobNames=['conv_0'])
net.setInput(x); net.forwardAndRetrieve('yolo_13')
net.setInput(x); net.forwardAsync()
net.setInput(x); net.forwardAsync('yolo_13')
net.setInput(x); a = net.forward(); b = net.forward(); (a is b, np.shares_memory(a, b), bool((a == b).all()))
net.setInput(x); a = net.forward(); c = a.copy(); net.setInput(x / 2); net.forward(); bool((a == c).all())
net.setInput(x); a = net.forward('leaky_1'); b = net.forward('leaky_1'); np.shares_memory(a, b)
net.setInput(x); a, b = net.forward(['leaky_1', 'leaky_1']); a is b
net.setInput(x); a = net.forward(); (a.flags.writeable, a.flags.c_contiguous)
net.setInput(x); a = net.forward('identity_14'); (a.flags.writeable, a.flags.c_contiguous)
net.setInput(x); net.forward('bn_0')
net.setInput(x); net.forward('pool_1')
net.setInput(x); net.forward('slice_4')
net.setInput(x); net.forward('concat_6')
net.setInput(x); net.forward('mish_9')
net.setInput(x); net.forward('permute_13')
net.setInput(x); net.forward('upsample_16')
net.setInput(x); net.forward(); t, ticks = net.getPerfProfile(); (type(t).__name__, t > 0, ticks.shape, ticks.dtype.name)
net.getPerfProfile()
net.setInput(x); net.forward({'yolo_13': 1})
net.setInput(x); net.forward(iter(['yolo_13']))
net.setInput(x); net.forward(outBlobNames={'yolo_13'})
net.setInput(x); net.forward('yolo_13\\0x')
net.setInput(x); net.forward('YOLO_13')
net.setInput(x); net.forward(net.getLayerNames()[-1:])
net.setInput(x); [y.shape for y in net.forward(net.getLayerNames())]
net.setInput(x); a = net.forward(); a[:] = 0; net.forward()
net.setInput(x); net.forwardAndRetrieve({'yolo_13': 1})
net.setInput(x); net.forward('conv_0'); net.forward()
net.setInput(x); net.forward('yolo_13'); net.forward('conv_0'); net.forward()
m = dnn.Model(net); m.setInputParams(1 / 255, (64, 64)); m.predict(frame[::2]); net.setInput(x); m.predict(frame)
f, g = net.setInput, net.forward; f(x); g(outputName='yolo_13')
dnn.Net.setInput(net, x); dnn.Net.forward(net)
"""

LAYERS = """
net.getLayerNames()
net.getUnconnectedOutLayers()
net.getUnconnectedOutLayers()[0]
net.getUnconnectedOutLayers()[0][0]
net.getUnconnectedOutLayers().reshape(-1, 1)[0]
net.getUnconnectedOutLayersNames()
v2.getLayerNames()
v2.getUnconnectedOutLayersNames()
classes.getLayerNames()
classes.getUnconnectedOutLayersNames()
net.getLayerTypes()
v2.getLayerTypes()
net.getLayersCount('Region')
net.getLayersCount(layerType='Convolution')
net.getLayersCount('None')
net.getLayerId('conv_0')
net.getLayerId(layer='yolo_19')
net.getLayerId('_input')
net.getLayerId('data')
net.getLayerId('none')
net.getLayerId('')
net.getLayerId(None)
net.getLayerId(1)
net.getLayerId(net.getLayerNames()[-1])
net.getLayer(net.getLayerId(net.getLayerNames()[-1])).type
layer = net.getLayer(0); (layer.name, layer.type, layer.blobs, layer.preferableTarget)
net.getLayer(0).outputNameToIndex('im_info')
net.getLayer(0).outputNameToIndex('data')
net.getLayer(0).outputNameToIndex(outputName='_input')
net.getLayer(1).outputNameToIndex('conv_0')
net.getLayer(1).outputNameToIndex('none')
net.getLayer(1).outputNameToIndex(5)
net.setInputsNames(['im_info', 'data']); net.getLayer(0).outputNameToIndex('data')
net.getLayer('conv_0').name
net.getLayer('conv_0').type
net.getLayer('conv_0').blobs
net.getLayer('bn_0').blobs
net.getLayer('yolo_19').blobs
net.getLayer('leaky_1').blobs
v2.getLayer('detection_out').blobs
net.getLayer('conv_0').preferableTarget
net.getLayer('_input').name
net.getLayer('none')
net.getLayer(99)
net.getLayer(-1)
net.getLayer(np.int64(1)).name
net.getLayer(net.getUnconnectedOutLayers()[0]).name
net.getLayer(np.str_('conv_0')).name
net.getLayer(b'conv_0').name
net.getLayer(layerId=2).name
net.getLayer(layerName='bn_0').name
net.getLayer(None).name
net.getLayer(1.5)
net.getLayer(np.array([3]))
net.getLayer()
net.getLayer('conv_0').foo
layer = net.getLayer('conv_0'); layer.name = 'x'
net.getLayer('conv_0').empty()
net.getLayer('conv_0').getDefaultName()
net.getLayer('conv_0').clear()
net.getLayer('leaky_1').finalize([np.zeros((1, 8, 4, 4), np.float32)])
layer = net.getLayer('conv_0'); layer.blobs = [np.zeros((8, 3, 3, 3), np.float32)]; net.getParam('conv_0')
layer = net.getLayer('conv_0'); layer.blobs = [layer.blobs[0] * 2]; net.setInput(x); net.forward('conv_0')
b = net.getLayer('conv_0').blobs; b[0][:] = 0; net.getParam('conv_0')
net.getParam('conv_0')
net.getParam('conv_0', 0)
net.getParam('bn_0', 3)
net.getParam('bn_0', numParam=1)
net.getParam('conv_12', 1)
net.getParam(1)
net.getParam(1, 0)
net.getParam(layer=1, numParam=0)
net.getParam(layerName='conv_0', numParam=0)
net.getParam('yolo_19')
net.getParam('leaky_1')
net.getParam('bn_0', 4)
net.getParam('none')
net.getParam(99)
net.getParam(0)
net.getParam(1.5)
net.getParam()
a = net.getParam('conv_0'); a[:] = 0; net.getParam('conv_0')
net.setParam('conv_0', 0, net.getParam('conv_0') * 2)
net.setParam('conv_0', 0, net.getParam('conv_0') * 2); net.getParam('conv_0')
net.setParam('conv_0', 0, net.getParam('conv_0') * 2); net.setInput(x); net.forward('conv_0')
net.setParam(1, 0, net.getParam('conv_0') * 2); net.setInput(x); net.forward()
net.setParam(layer=1, numParam=0, blob=net.getParam('conv_0') * 2); net.getParam(1)
net.setParam(layerName='bn_0', numParam=3, blob=net.getParam('bn_0', 3) + 1); net.setInput(x); net.forward('bn_0')
net.setParam('conv_0', 1, np.zeros((8,), np.float32))
net.setParam('none', 0, np.zeros((8,), np.float32))
net.setParam('conv_0', 0, np.zeros((2, 3, 3, 3), np.float32)); net.setInput(x); net.forward()
net.registerOutput('boxes', net.getLayerId('yolo_19'), 0)
net.registerOutput('boxes', net.getLayerId('yolo_19'), 0); net.getUnconnectedOutLayersNames()
net.registerOutput('boxes', net.getLayerId('yolo_13'), 0); net.setInput(x); net.forward('boxes')
net.registerOutput('yolo_19', net.getLayerId('yolo_19'), 0)
net.registerOutput('yolo_19', net.getLayerId('yolo_19'), 0); net.getUnconnectedOutLayersNames()
net.registerOutput('boxes', net.getLayerId('yolo_13'), 0); net.getLayer('boxes').type
net.registerOutput('boxes', 34, 1.5)
net.registerOutput('boxes', 34, 0); net.registerOutput('more', 34, 0); net.getUnconnectedOutLayersNames()
net.registerOutput('boxes', net.getLayerId('yolo_13'), 0); detector(net).detect(frame, 0.6)
net.registerOutput('boxes', net.getLayerId('yolo_13'), 0); net.getLayersShapes((1, 3, 64, 96))[2][-1]
net.empty()
net.getInputDetails()
net.getOutputDetails()
net.connect('none', 'bn_0')
net.connect('conv_0', 'bn_0')
net.addLayer('own', 'ReLU', 5, {})
net.addLayerToPrev('own', 'ReLU', 5, {})
type(net.quantize([x], cv2.CV_8S, cv2.CV_8S)).__name__
net.none
"""

COST = """
net.getLayersShapes((1, 3, 64, 96))
net.getLayersShapes([1, 3, 64, 96])[0]
net.getLayersShapes([2, 3, 64, 96])[2][-1]
net.getLayersShapes([1, 3, 128, 96])[1][-1]
net.getLayersShapes([(1, 3, 64, 96)])[2][-1]
net.getLayersShapes(netInputShape=(1, 3, 64, 96))[2][-1]
net.getLayersShapes(netInputShapes=[(1, 3, 64, 96)])[2][-1]
net.getLayersShapes(x.shape)[2][1]
v2.getLayersShapes((2, 3, 64, 96))
classes.getLayersShapes((1, 3, 64, 64))
net.getLayersShapes((1, 2, 64, 96))
net.getLayersShapes((3, 64, 96))
net.getLayersShapes()
net.getLayersShapes(5)
net.getLayersShapes({})
net.getLayersShapes(np.array(2.5))
net.getLayersShapes((0, 3, 64, 96))
net.getLayersShapes((1, 3, 64, -96))
net.getLayersShapes([(1, 3, 64, 96), (1, 3, 64, 96)])
net.getLayersShapes((1, 3, 65, 97))[2][-1]
net.getFLOPS({})
net.getFLOPS((0, 3, 64, 96))
net.getMemoryConsumption(np.array(2.5))
net.getMemoryConsumption((1, 3, 64, 96))
net.getMemoryConsumption((2, 3, 64, 96))
net.getMemoryConsumption(netInputShape=(1, 3, 64, 96))
net.getMemoryConsumption([(1, 3, 64, 96)])
net.getMemoryConsumption(1, (1, 3, 64, 96))
net.getMemoryConsumption(1, [(1, 3, 64, 96)])
net.getMemoryConsumption(layerId=2, netInputShape=(1, 3, 64, 96))
net.getMemoryConsumption(0, (1, 3, 64, 96))
net.getMemoryConsumption(99, (1, 3, 64, 96))
net.getMemoryConsumption((1, 2, 64, 96))
net.getMemoryConsumption()
v2.getMemoryConsumption((1, 3, 64, 96))
net.getFLOPS((1, 3, 64, 96))
net.getFLOPS([(1, 3, 64, 96)])
net.getFLOPS(netInputShape=(2, 3, 64, 96))
net.getFLOPS(netInputShapes=[(1, 3, 128, 96)])
[net.getFLOPS(k, (1, 3, 64, 96)) for k in range(41)]
[v2.getFLOPS(k, (1, 3, 64, 96)) for k in range(len(v2.getLayerNames()))]
[classes.getFLOPS(k, (1, 3, 64, 64)) for k in range(len(classes.getLayerNames()))]
net.getFLOPS(1, [(1, 3, 64, 96)])
net.getFLOPS(layerId=1, netInputShape=(1, 3, 64, 96))
net.getFLOPS(99, (1, 3, 64, 96))
net.getFLOPS((1, 2, 64, 96))
net.getFLOPS()
net.dump()
net.setInput(x); net.dump()[:9]
net.setInput(x); type(net.dump()).__name__
net.setInput(x); net.dumpToFile(str(folder / 'net.dot'))
net.setInput(x); net.dumpToFile(path=str(folder / 'net.dot')); (folder / 'net.dot').read_text()[:9]
p = folder / 'net.dot'; net.setInput(x); net.dumpToFile(str(p)); [name in p.read_text() for name in net.getLayerNames()]
net.dumpToFile(str(folder / 'net.dot'))
net.setInput(x); net.dumpToFile(str(folder / 'none' / 'net.dot'))
net.setInput(x); net.dumpToPbtxt(str(folder / 'net.pbtxt'))
net.setInput(x); net.dumpToPbtxt(path=str(folder / 'net.pbtxt')); 'name: "yolo_19"' in (folder / 'net.pbtxt').read_text()
net.dumpToPbtxt(str(folder / 'net.pbtxt'))
"""

BACKENDS = """
net.setPreferableBackend(dnn.DNN_BACKEND_OPENCV)
net.setPreferableBackend(backendId=dnn.DNN_BACKEND_DEFAULT)
net.setPreferableBackend(None)
net.setPreferableBackend('x')
net.setPreferableBackend(99)
net.setPreferableBackend(99); net.setInput(x); net.forward()
net.setPreferableBackend(dnn.DNN_BACKEND_INFERENCE_ENGINE)
net.setPreferableTarget(dnn.DNN_TARGET_CPU)
net.setPreferableTarget(targetId=dnn.DNN_TARGET_OPENCL); net.setInput(x); net.forward()
net.setPreferableTarget(dnn.DNN_TARGET_OPENCL_FP16); net.setInput(x); net.forward('conv_0').shape
net.setPreferableTarget(dnn.DNN_TARGET_CPU_FP16); net.setInput(x); net.forward()
net.setPreferableTarget(99)
net.setPreferableTarget(99); net.setInput(x); net.forward()
net.setPreferableTarget('x')
net.setPreferableBackend(dnn.DNN_BACKEND_OPENCV); net.setPreferableTarget(dnn.DNN_TARGET_CPU); net.setInput(x); net.forward()
net.setPreferableBackend(dnn.DNN_BACKEND_CUDA); net.setPreferableTarget(dnn.DNN_TARGET_CUDA); net.setInput(x); net.forward()
net.enableFusion(True)
net.enableFusion(fusion=False)
net.enableFusion(1)
net.enableFusion('a')
net.enableFusion()
net.enableWinograd(useWinograd=False)
net.enableWinograd('a')
net.setHalideScheduler('')
net.setHalideScheduler(scheduler='x')
net.setHalideScheduler(5)
dnn.getAvailableTargets(dnn.DNN_BACKEND_DEFAULT)
dnn.getAvailableTargets(be=dnn.DNN_BACKEND_OPENCV)
dnn.getAvailableTargets(dnn.DNN_BACKEND_CUDA)
dnn.getAvailableTargets(99)
dnn.getAvailableTargets('x')
sorted((name, getattr(dnn, name)) for name in dir(cv2.dnn) if name.startswith(('DNN_BACKEND', 'DNN_TARGET')) and name in OPENCV_4)
dnn.Net()
dnn.Net().empty()
dnn.Net().getLayerNames()
dnn.Net().getUnconnectedOutLayers()
dnn.Net().getUnconnectedOutLayersNames()
dnn.Net().setInput(x)
dnn.Net().forward()
dnn.Net().getLayer(0).name
dnn.Net().getLayerId('conv_0')
dnn.Net().getLayersCount('Region')
dnn.Net().enableFusion(True)
dnn.Net().setPreferableBackend(dnn.DNN_BACKEND_OPENCV)
dnn.Net().setPreferableTarget(dnn.DNN_TARGET_CPU)
dnn.Net().getLayersShapes((1, 3, 64, 96))
dnn.DetectionModel(dnn.Net())
net.setPreferableTarget(dnn.DNN_TARGET_VULKAN); net.setInput(x); net.forward()
dnn.Net(5)
isinstance(net, dnn.Net)
isinstance(5, dnn.Net)
isinstance(net.getLayer(1), dnn.Layer)
isinstance(dnn.DetectionModel(net), dnn.Model)
issubclass(dnn.ClassificationModel, dnn.Model)
len({net, net})
net == net
dnn.Net.readFromModelOptimizer('none.xml', 'none.bin')
"""

MODELS = """
dnn.Model(net)
dnn.Model(network=net)
dnn.Model(weights, cfg)
dnn.Model(cfg, weights)
dnn.Model(model=weights, config=cfg)
dnn.Model(Path(weights), Path(cfg))
dnn.Model(cfg)
dnn.Model(cfg, None)
dnn.Model()
dnn.Model(5)
dnn.Model(net, cfg)
dnn.DetectionModel(net)
dnn.DetectionModel(network=net)
dnn.DetectionModel(weights, cfg)
dnn.DetectionModel(cfg, weights)
dnn.DetectionModel(model=weights, config=cfg)
dnn.DetectionModel(config=cfg, model=weights)
dnn.DetectionModel(cfg)
dnn.DetectionModel(cfg, None)
dnn.DetectionModel()
dnn.DetectionModel('none.weights', 'none.cfg')
dnn.DetectionModel(None)
dnn.ClassificationModel(classes)
dnn.ClassificationModel(network=classes)
dnn.ClassificationModel(model=weights, config=cfg)
dnn.Model(net).setInputParams()
dnn.Model(net).setInputParams(1 / 255, (96, 64), (0, 0, 0), True, False)
dnn.Model(net).setInputParams(scale=1 / 255, size=(96, 64), mean=(0, 0, 0), swapRB=True, crop=False)
dnn.Model(net).setInputParams(scale=1 / 255, size=[96, 64], mean=0, swapRB=1)
dnn.Model(net).setInputParams(scale=None, size=None, mean=None, swapRB=None, crop=None)
dnn.Model(net).setInputParams(size=np.array([96, 64]))
dnn.Model(net).setInputParams(scale=(1, 1, 1))
dnn.Model(net).setInputParams(size=96)
dnn.Model(net).setInputParams(size=(96.0, 64.0))
dnn.Model(net).setInputParams(size=(96, 64, 3))
dnn.Model(net).setInputParams(size='ab')
dnn.Model(net).setInputParams(mean='a')
dnn.Model(net).setInputParams(crop='a')
dnn.Model(net).setInputParams(none=1)
type(dnn.Model(net).setInputSize((96, 64))).__name__
type(dnn.Model(net).setInputSize(size=(96, 64))).__name__
type(dnn.Model(net).setInputSize(width=96, height=64)).__name__
type(dnn.DetectionModel(net).setInputSize(96, 64)).__name__
dnn.Model(net).setInputSize(96)
type(dnn.Model(net).setInputScale(1 / 255)).__name__
type(dnn.Model(net).setInputScale(scale=(0.1, 0.2, 0.3))).__name__
dnn.Model(net).setInputScale(None)
dnn.Model(net).setInputScale(0)
type(dnn.Model(net).setInputMean((1, 2, 3))).__name__
type(dnn.Model(net).setInputMean(mean=1)).__name__
type(dnn.Model(net).setInputSwapRB(swapRB=True)).__name__
type(dnn.Model(net).setInputCrop(crop=True)).__name__
type(dnn.Model(net).setOutputNames(outNames=['yolo_13'])).__name__
type(dnn.Model(net).setPreferableBackend(backendId=3)).__name__
type(dnn.Model(net).setPreferableTarget(targetId=0)).__name__
type(dnn.Model(net).enableWinograd(useWinograd=False)).__name__
type(dnn.DetectionModel(net).setNmsAcrossClasses(value=True)).__name__
dnn.Model(net).predict(frame)
dnn.DetectionModel(net).detect(frame)
net.setInputShape('data', (1, 3, 32, 48)); dnn.Model(net).predict(frame)
m = dnn.Model(net); m.setInputParams(size=(0, 0)); m.predict(frame)
m = dnn.Model(net); m.setInputSize(96, 64); m.predict(frame)
m = dnn.Model(net); m.setInputSize(96, 64); m.predict(frame=frame)
m = dnn.Model(net); m.setInputSize(96, 64); m.predict(frame, None)
m = dnn.Model(net); m.setInputSize(96, 64); m.setOutputNames(['yolo_13', 'conv_0']); m.predict(frame)
m = dnn.Model(net); m.setInputSize(96, 64); m.setOutputNames([]); m.predict(frame)
m = dnn.Model(net); m.setInputSize(96, 64); m.setOutputNames(['none']); m.predict(frame)
m = dnn.Model(net); m.setInputSize(96, 64); m.predict(None)
m = dnn.Model(net); m.setInputSize(96, 64); m.predict(np.zeros((0, 0, 3), np.uint8))
m = dnn.Model(net); m.setInputSize(96, 64); m.predict('photo.jpg')
m = dnn.Model(net); m.setInputSize(96, 64); m.predict(frame[:, :, 0])
m = dnn.Model(net); m.setInputSize(96, 64); m.predict(frame.astype(np.float32))
m = dnn.Model(net); m.setInputSize(48, 32); m.predict(frame); net.setInput(x); net.forward()
m = first(net); m.setInputParams(1 / 255, (96, 64), (10, 20, 30), True); m.predict(frame)
m = first(net); m.setInputParams(1 / 255, (96, 64), (10, 20, 30)); m.predict(frame)
m = first(net); m.setInputParams(1 / 255, (96, 64), 10); m.predict(frame)
m = first(net); m.setInputParams(1 / 255, (96, 96), crop=True); m.predict(frame)
m = first(net); m.setInputScale((0.1, 0.2, 0.3)); m.predict(frame)
m = first(net); m.setInputScale((1, 2, 3)); m.setInputSwapRB(True); m.predict(frame)
m = first(net); m.setInputScale(1 / 255); m.setInputMean((3, 5, 7)); m.predict(frame)
detector(net).detect(frame)
detector(net).detect(frame, 0.6, 0.4)[0].dtype.name
detector(net).detect(cv2.UMat(frame), 0.3, 0.4)
detector(net).predict(cv2.UMat(frame))
[len(v) for v in detector(net).detect(frame=frame, confThreshold=0.9, nmsThreshold=0.4)]
detector(net).detect(frame, 0)[1]
detector(net).detect(frame, None, None)
detector(net).detect(frame, 1.0)
detector(net).detect(frame, 1.0, 0.4)
detector(net).detect(None)
detector(net).detect(frame, 'a')
detector(net).detect()
dnn.DetectionModel(net).getNmsAcrossClasses()
m = dnn.DetectionModel(net); m.setNmsAcrossClasses(True); m.getNmsAcrossClasses()
detector(v2).detect(frame, 0.3)
detector(v2).predict(frame)
m = dnn.Model(v2); m.setInputParams(1 / 255, (96, 64), swapRB=True); m.predict(frame)
m = dnn.DetectionModel(v2); v2.setInput(x); v2.forward()
m = dnn.DetectionModel(classes); m.setInputSize(64, 64); m.detect(frame)
detector(net).detect(frame[10:100, 20:120], 0.5)
detector(net).detect(frame[:, ::-1], 0.5)
detector(net).detect(frame[:, :, :1], 0.5)
detector(net).detect(np.dstack([frame, frame[:, :, :1]]), 0.5)
detector(net).detect(frame.astype(np.float32), 0.5)
detector(net).detect(frame.astype(np.float64), 0.5)
detector(net).detect(frame.astype(np.uint16), 0.5)
detector(net).detect(frame > 100, 0.5)
detector(net).detect(frame[None], 0.5)
detector(net).detect([frame], 0.5)
detector(net).detect(np.zeros((1, 1, 3), np.uint8))
detector(net).detect(np.zeros((5, 0, 3), np.uint8))
detector(net).detect(frame, -1)
detector(net).detect(frame, 2, 0.4)
detector(net).detect(frame, 0.5, float('nan'))
detector(net).detect(frame, np.float32(0.5), np.float64(0))
detector(net).detect(frame, conf_threshold=0.5)
detector(net).detect(frame, 0.5, 0.4, 1)
m = detector(net); m.setOutputNames(['yolo_13']); m.detect(frame, 0.5)
m = detector(net); m.setOutputNames(['yolo_19', 'yolo_13']); m.detect(frame, 0.5)
m = detector(net); m.setOutputNames(['conv_12']); m.detect(frame, 0.5)
m = detector(net); m.setOutputNames(['conv_12', 'yolo_19']); m.detect(frame, 0.5)
m = detector(net); m.setInputCrop(True); m.detect(frame, 0.5)
m = detector(net); m.setInputMean(127.5); m.detect(frame, 0.5)
m = dnn.Model(net); m.setInputSize(2**40, 64)
m = dnn.Model(net); m.setInputSize(np.array(2.5))
m = dnn.Model(net); m.setOutputNames(np.array(1))
a, b = detector(net), detector(net); b.setInputSize(48, 32); (a.detect(frame, 0.5), b.detect(frame, 0.5), a.detect(frame, 0.5))
m = detector(net); m.detect(frame, 0.5); net.forward()
m = dnn.DetectionModel(read(two_heads)); m.setInputParams(1 / 255, (24, 16)); m.detect(frame, 0.3)
m = type('M', (dnn.DetectionModel,), {})(weights, cfg); m.setInputParams(1 / 255, (96, 64)); m.detect(frame, 0.6)
m = dnn.ClassificationModel(classes); m.setInputSize(64, 64); m.classify(frame)
m = dnn.ClassificationModel(classes); m.setInputSize(64, 64); m.classify(frame=frame)
m = dnn.ClassificationModel(classes); m.setInputSize(64, 64); m.classify(cv2.UMat(frame))
m = dnn.ClassificationModel(classes); m.setInputSize(64, 64); m.setEnableSoftmaxPostProcessing(True); m.classify(frame)
dnn.ClassificationModel(classes).getEnableSoftmaxPostProcessing()
type(dnn.ClassificationModel(classes).setEnableSoftmaxPostProcessing(enable=True)).__name__
m = dnn.ClassificationModel(net); m.setInputSize(96, 64); m.classify(frame)
"""

KEYS = """
run(yolo())
run(yolo('thresh=1.5'))
run(yolo(classes='classes=80', mask='mask=0'), filters=85)
run(yolo(mask='mask=1,0'))
run(yolo(mask='mask = 0,1,'))
run(yolo(anchors='anchors = 4.5 , 5.25 , 8 , 9 '))
run(yolo(), size=(40, 24), batch=3)
run(two_heads)
names(two_heads)
outputs(two_heads)
run(yolo('thresh=0'))
run(yolo('thresh=0.5'))
run(yolo('thresh=0.2'))
run(yolo('ignore_thresh=.9'))
run(yolo('nms_threshold=.3'))
run(yolo('nms_threshold=.3\\nthresh=.05'))
run(yolo('nms_kind=greedynms\\nbeta_nms=0.6'))
run(yolo('scale_x_y=1.2'))
run(yolo('new_coords=1\\nscale_x_y=2'))
run(yolo('jitter=.3\\ntruth_thresh=1\\nrandom=1\\nmax=200'))
run(yolo(mask='mask=1'), filters=7)
run(yolo(mask=''))
run(yolo(num=''))
run(yolo(num='num=3'))
run(yolo(anchors=''))
run(yolo(classes=''))
run(yolo(classes='classes=3'))
run(yolo(), batch=2)
run(yolo(), size=(48, 32))
run(region())
run(region('thresh=0'))
run(region('thresh=.5'))
run(region('thresh=.24'))
run(region('nms_threshold=.1'))
run(region('classfix=-1'))
run(region('classfix=1'))
run(region('bias_match=1\\nrescore=0\\nabsolute=1\\nrandom=1'))
run(region('background=1'))
run(region(softmax='softmax=0'))
run(region(softmax=''))
run(region(), batch=2)
run(region(coords='coords=5'), filters=16)
run(conv(activation='leaky'))
run(conv(activation='relu'))
run(conv(activation='logistic'))
run(conv(activation='mish'))
run(conv(activation='swish'))
run(conv(activation='tanh'))
names(conv(activation='tanh'))
run(conv(activation='relu6'))
run(conv(activation='elu'))
run(conv(activation='hard_mish'))
run(conv(activation='none'))
run(conv('batch_normalize=1'))
run(conv('groups=1'))
run(conv(filters='filters=6') + conv('groups=3', filters='filters=9'))
run(conv('stride=3'))
run(conv(pad='pad=0\\npadding=2'))
run(conv(pad='pad=1\\npadding=0'))
run(conv(pad='', size='size=1'))
run(conv(size='size=4'))
run(conv(activation=''))
run(conv('antialiasing=1\\nstride=2'))
run(conv() + '[maxpool]\\nsize=4\\nstride=4\\n')
run(conv() + '[maxpool]\\nsize=1\\nstride=2\\n')
run(conv() + '[dropout]\\n' + conv())
run(conv() + '[softmax]\\n')
run(conv() + '[upsample]\\nstride=2\\nscale=2\\n')
run(conv() + '[reorg]\\nstride=2\\nreverse=1\\n')
run(conv() + '[connected]\\noutput=3\\nactivation=leaky\\nbatch_normalize=1\\n')
run(conv() + conv() + '[route]\\nlayers=-1,-1\\n')
run(conv() + conv() + '[route]\\nlayers=-1\\ngroups=4\\ngroup_id=3\\n')
run(conv() + conv() + '[route]\\nlayers=-1\\ngroups=2\\ngroup_id=2\\n')
run(conv() + conv() + '[shortcut]\\nfrom=-1\\nactivation=mish\\n')
run(conv() + conv() + '[shortcut]\\nfrom=-2\\nbeta=2\\nactivation=linear\\n')
run(conv() + conv(activation='logistic') + '[sam]\\nfrom=-2\\n')
run('[crop]\\ncrop_width=16\\ncrop_height=8\\nnoadjust=1\\n' + conv())
run('[crop]\\ncrop_width=16\\ncrop_height=8\\n' + conv())
run(conv(), net='width=24\\nwidth=48\\nheight=16\\nchannels=3')
run(conv(), net='width=24\\nheight=16\\nchannels=4', channels=4)
run(yolo(), net='width=24\\nheight=16\\nchannels=1', channels=1)
run(conv('stride=2'))
run(conv(pad='pad=0'))
run(conv(pad='padding=1'))
run(conv(pad='padding=2'))
run(conv(size='size=1'))
run(conv(size='size=2'))
run(conv(size='size=5'))
run(conv(size='size=5') + conv('groups=2'))
run(conv() + conv('dilation=2'))
run(conv() + conv('stride_x=2\\nstride_y=1'))
run(conv('binary=1'))
run(conv('flipped=1'))
run(conv(filters=''))
run(conv(filters='filters=-1'))
run(conv() + '[maxpool]\\n')
run(conv() + '[maxpool]\\nsize=2\\nstride=2\\n')
run(conv() + '[maxpool]\\nsize=2\\nstride=1\\n')
run(conv() + '[maxpool]\\nsize=3\\nstride=2\\n')
run(conv() + '[maxpool]\\nsize=3\\nstride=2\\n', size=(25, 17))
run(conv() + '[maxpool]\\nsize=5\\nstride=1\\n')
run(conv() + '[maxpool]\\nsize=13\\nstride=1\\n')
run(conv() + '[maxpool]\\nsize=3\\nstride=3\\n')
run(conv() + '[maxpool]\\nsize=2\\nstride=2\\npadding=0\\n', size=(25, 17))
run(conv() + '[maxpool]\\nsize=3\\nstride=2\\npadding=1\\n', size=(25, 17))
run(conv() + '[maxpool]\\nmaxpool_depth=1\\nout_channels=2\\n')
run(conv() + '[avgpool]\\n')
run(conv() + '[avgpool]\\n', batch=2)
run(conv() + '[avgpool]\\n[softmax]\\n')
run(conv() + '[avgpool]\\n[softmax]\\ntemperature=2\\n')
run(conv() + '[avgpool]\\n[softmax]\\ngroups=2\\n')
run(conv() + '[avgpool]\\n[dropout]\\nprobability=.5\\n[cost]\\n')
names(conv() + '[avgpool]\\n[dropout]\\nprobability=.5\\n[cost]\\n')
run(conv() + '[upsample]\\n')
run(conv() + '[upsample]\\nstride=2\\n')
run(conv() + '[upsample]\\nstride=3\\n')
run(conv() + conv() + '[route]\\nlayers=-1\\n')
run(conv() + conv() + '[route]\\nlayers=0\\n')
outputs(conv() + conv() + '[route]\\nlayers=0\\n')
run(conv() + conv() + '[route]\\nlayers=-1,-2\\n')
run(conv() + conv() + '[route]\\nlayers = 0, 1\\n')
run(conv() + conv() + '[route]\\nlayers=-1\\ngroups=2\\ngroup_id=1\\n')
run(conv() + conv() + '[route]\\nlayers=-1\\ngroups=2\\n')
run(conv() + conv() + '[route]\\nlayers=-1,-2\\ngroups=2\\ngroup_id=1\\n')
names(conv() + conv() + '[route]\\nlayers=-1,-2\\ngroups=2\\ngroup_id=1\\n' + conv(activation='leaky'))
run(conv() + conv() + '[route]\\nlayers=-1,-2\\ngroups=2\\ngroup_id=1\\n', output='slice_3')
run(conv() + conv() + '[route]\\n')
run(conv() + conv() + '[route]\\nlayers=7\\n')
run(conv() + conv() + conv() + '[shortcut]\\nfrom=-2\\n')
run(conv() + conv() + conv() + '[shortcut]\\nfrom=0\\nactivation=leaky\\n')
names(conv() + conv() + conv() + '[shortcut]\\nfrom=0\\nactivation=leaky\\n')
run(conv(filters='filters=6') + conv() + '[shortcut]\\nfrom=-2\\n')
run(conv(filters='filters=2') + conv() + '[shortcut]\\nfrom=-2\\n')
run(conv() + conv() + conv() + '[shortcut]\\nfrom=-2,-3\\n')
run(conv() + conv() + conv() + '[shortcut]\\nfrom=-2\\nalpha=.5\\n')
run(conv() + conv() + conv() + '[shortcut]\\n')
run(conv() + '[reorg]\\n')
run(conv() + '[reorg]\\nstride=2\\n')
run(conv() + '[avgpool]\\n' + conv(size='size=1') + '[scale_channels]\\nfrom=-3\\n')
run(conv() + conv() + '[sam]\\nfrom=-2\\n')
run(conv() + '[avgpool]\\n' + conv(size='size=1') + '[scale_channels]\\nfrom=-3\\n', batch=2)
run(conv() + '[connected]\\noutput=5\\nactivation=linear\\n')
run(conv() + '[connected]\\noutput=5\\nactivation=leaky\\n')
run(conv() + '[connected]\\noutput=5\\nactivation=leaky\\n', output='fullyConnected_1')
run(conv() + '[connected]\\noutput=5\\nactivation=linear\\n[softmax]\\n')
run(conv() + '[connected]\\noutput=5\\nactivation=linear\\n[dropout]\\n[softmax]\\n[cost]\\n')
run(conv() + '[connected]\\noutput=5\\nactivation=leaky\\n[dropout]\\n[connected]\\noutput=3\\nactivation=linear\\n')
names(conv() + '[connected]\\noutput=5\\nactivation=leaky\\n[dropout]\\n[connected]\\noutput=3\\nactivation=linear\\n')
run(conv() + '[connected]\\noutput=5\\nactivation=linear\\n[softmax]\\n', batch=2)
run(conv() + '[connected]\\noutput=5\\nactivation=linear\\n', size=(48, 32))
run('[connected]\\noutput=5\\nactivation=linear\\n')
run(conv() + '[maxpool]\\nsize=2\\nstride=2\\n[connected]\\noutput=5\\nactivation=linear\\n[softmax]\\n')
shapes(conv() + '[connected]\\noutput=5\\nactivation=linear\\n[dropout]\\n[softmax]\\n[cost]\\n')
run(conv(), net='width=24\\nheight=16\\nchannels=1', channels=1)
run(conv(), net='width=24\\nheight=16')
run(conv() + '; a comment\\n# another\\n')
run(conv().replace('\\n', '\\r\\n'))
run(conv() + 'none=3\\n')
run(conv() + 'none\\n')
run(conv().replace('=', ' = '))
run(conv().rstrip())
run('')
run(conv() + '[none]\\n')
run(conv() + conv() + '[local]\\nsize=3\\nfilters=2\\n')
run(conv() + conv() + '[reorg3d]\\nstride=2\\n')
run(conv(), net='width=0\\nheight=16')
run(conv(), net='width=-1\\nheight=16')
run(conv(filters='filters=abc'))
"""

CALLS = [
    line for group in (READ, INPUT, FORWARD, LAYERS, COST, BACKENDS, MODELS, KEYS) for line in group.split("\n") if line
]

# Calls whose answer differs on purpose: reason -> what ours is, and the calls. `error` is a cv2.error, `other` the result of a
# call that raises nothing.
REASONS = {
    "bytes with the content of a file are a buffer; OpenCV takes all bytes for a path": ("other", """
dnn.readNetFromDarknet(Path(cfg).read_bytes(), Path(weights).read_bytes())
"""),
    "a file that ends early is refused; OpenCV leaves the weights that it lacks uninitialized": ("error", """
p = folder / 'half.weights'; p.write_bytes(Path(weights).read_bytes()[:3000]); dnn.readNetFromDarknet(cfg, str(p))
"""),
    "OpenCV fuses layers, so the output of an inner one is the next one's, or memory that later layers have used; fused again, "
    "layers give wrong outputs": ("other", """
net.setInput(x); net.forward('conv_0'); net.forward()
net.setInput(x); net.forward('bn_0')
net.setParam(layerName='bn_0', numParam=3, blob=net.getParam('bn_0', 3) + 1); net.setInput(x); net.forward('bn_0')
"""),
    "the cfg lists and connects the layers, in float32": ("error", """
net.connect('conv_0', 'bn_0')
net.addLayer('own', 'ReLU', 5, {})
net.addLayerToPrev('own', 'ReLU', 5, {})
type(net.quantize([x], cv2.CV_8S, cv2.CV_8S)).__name__
"""),
    "a cfg whose sizes do not fit is refused; OpenCV looks at them in `forward` only": ("error", """
n = sized('width=100'); n.setInput(x); n.forward()
"""),
    "without weights they are random; OpenCV has none": ("other", """
n = dnn.readNetFromDarknet(cfg); n.setInput(x); n.forward()
"""),
    "a file that cannot be written is reported": ("error", """
net.setInput(x); net.dumpToFile(str(folder / 'none' / 'net.dot'))
"""),
    "the network runs on NumPy where OpenCV's build lacks the backend": ("other", """
net.setPreferableBackend(dnn.DNN_BACKEND_INFERENCE_ENGINE)
net.setPreferableBackend(dnn.DNN_BACKEND_CUDA); net.setPreferableTarget(dnn.DNN_TARGET_CUDA); net.setInput(x); net.forward()
net.setPreferableTarget(dnn.DNN_TARGET_VULKAN); net.setInput(x); net.forward()
"""),
    "a constructor raises cv2.error too; OpenCV's bindings raise SystemError": ("error", """
dnn.Net(5)
dnn.DetectionModel('none.weights', 'none.cfg')
dnn.DetectionModel(None)
"""),
    "setters return the model; OpenCV's return its base class, which has no `detect`": ("other", """
type(dnn.DetectionModel(net).setInputSize(96, 64)).__name__
"""),
    "Darknet's defaults: all anchors, of 0.5; num=1; filters=1; stride=1 of [maxpool] and [reorg], stride=2 of [upsample]; "
    "activation=logistic": ("other", """
run(yolo(mask=''))
run(yolo(num=''))
run(yolo(num='num=3'))
run(yolo(anchors=''))
run(conv(filters=''))
run(conv(activation=''))
run(conv() + '[maxpool]\\n')
run(conv() + '[upsample]\\n')
run(conv() + '[reorg]\\n')
"""),
    "keys and sections that OpenCV refuses": ("other", """
run(region(softmax='softmax=0'))
run(region(softmax=''))
run(region(coords='coords=5'), filters=16)
run(conv(activation='relu6'))
run(conv(activation='elu'))
run(conv(activation='hard_mish'))
run(conv(activation='none'))
run(conv('flipped=1'))
run(conv() + '[avgpool]\\n[softmax]\\ngroups=2\\n')
run(conv() + conv() + '[local]\\nsize=3\\nfilters=2\\n')
run(conv() + conv() + '[reorg3d]\\nstride=2\\n')
run(conv() + 'none\\n')
run('[crop]\\ncrop_width=16\\ncrop_height=8\\n' + conv())
run(conv() + conv() + '[shortcut]\\nfrom=-2\\nbeta=2\\nactivation=linear\\n')
"""),
    "the softmax of feature maps is over all values, as in Darknet; OpenCV's over the channels of each place": ("other", """
run(conv() + '[softmax]\\n')
"""),
    "keys that OpenCV ignores": ("other", """
run(conv() + conv('dilation=2'))
run(conv() + conv('stride_x=2\\nstride_y=1'))
run(conv('binary=1'))
run(conv() + '[maxpool]\\nmaxpool_depth=1\\nout_channels=2\\n')
run(conv() + '[avgpool]\\n[softmax]\\ntemperature=2\\n')
run(conv('antialiasing=1\\nstride=2'))
run(conv() + '[upsample]\\nstride=2\\nscale=2\\n')
run(conv() + '[reorg]\\nstride=2\\nreverse=1\\n')
run(conv() + '[connected]\\noutput=3\\nactivation=leaky\\nbatch_normalize=1\\n')
"""),
    "[shortcut] adds all sources; OpenCV only the first": ("other", """
run(conv() + conv() + conv() + '[shortcut]\\nfrom=-2,-3\\n')
"""),
    "`alpha` of [shortcut] has no effect, as in Darknet since its shortcuts have several sources": ("other", """
run(conv() + conv() + conv() + '[shortcut]\\nfrom=-2\\nalpha=.5\\n')
"""),
    "the groups of several sources of a [route] are joined in their order; OpenCV reverses two": ("other", """
run(conv() + conv() + '[route]\\nlayers=-1,-2\\ngroups=2\\ngroup_id=1\\n')
"""),
    "[scale_channels] runs on batches": ("other", """
run(conv() + '[avgpool]\\n' + conv(size='size=1') + '[scale_channels]\\nfrom=-3\\n', batch=2)
"""),
}  # fmt: skip
DIFFERENCES = {call: ours for ours, calls in REASONS.values() for call in calls.split("\n") if call}


def section(name, *lines):
    return "\n".join([f"[{name}]", *(line for line in lines if line), "", ""])


def conv(extra="", activation="linear", filters="filters=4", size="size=3", pad="pad=1"):
    return section("convolutional", filters, size, pad, f"activation={activation}", extra)


def yolo(extra="", mask="mask=0,1", anchors="anchors=4,5, 8,9", classes="classes=2", num="num=2"):
    return section("yolo", mask, anchors, classes, num, extra)


def region(extra="", softmax="softmax=1", coords="coords=4"):
    return section("region", "anchors=1,1, 2,2", "classes=2", "num=2", coords, softmax, extra)


two_heads = conv(filters="filters=14") + yolo() + section("route", "layers=-2") + conv(filters="filters=16")
two_heads += yolo(classes="classes=3")


def own_weights(text):
    """Return the weights of a cfg for `opencv4.weights_of`, or none for a cfg that is invalid."""
    from gpudarknet.errors import DarknetError

    try:
        return opencv4.weights_of(text)
    except DarknetError:
        return b""


class Networks:
    """Functions that read a cfg without its [net], with random weights of a fixed seed."""

    def __init__(self, dnn):
        self.dnn = dnn

    def read(self, text, net="width=24\nheight=16\nchannels=3", filters=14):
        if text.startswith(("[yolo]", "[region]")):
            text = conv(filters=f"filters={filters}") + text
        text = f"[net]\n{net}\n\n{text}"
        return self.dnn.readNetFromDarknet(bytearray(text.encode()), bytearray(own_weights(text)))

    def run(self, text, output="", batch=1, size=(24, 16), channels=3, **options):
        net = self.read(text, **options)
        net.setInput(np.random.default_rng(1).random((batch, channels, *size[::-1]), np.float32))
        return net.forward(output)

    def header(self, folder, cfg, weights, numbers):
        """Read a network whose weights begin with these int32 numbers."""
        path = folder / "header.weights"
        path.write_bytes(np.array(numbers, "<i4").tobytes() + Path(weights).read_bytes()[20:])
        return self.dnn.readNetFromDarknet(cfg, str(path))

    def sized(self, folder, cfg, weights, width):
        """Read a network whose cfg has another width."""
        path = folder / "sized.cfg"
        path.write_text(Path(cfg).read_text().replace("width=96", width))
        return self.dnn.readNetFromDarknet(str(path), weights)

    def detector(self, net):
        model = self.dnn.DetectionModel(net)
        model.setInputParams(1 / 255, (96, 64), swapRB=True)
        return model

    def first(self, net):
        model = self.dnn.Model(net)
        model.setInputSize(96, 64)
        model.setOutputNames(["conv_0"])
        return model

    def names(self, text):
        return self.read(text).getLayerNames()

    def outputs(self, text):
        return self.read(text).getUnconnectedOutLayersNames()

    def shapes(self, text):
        return self.read(text).getLayersShapes((1, 3, 16, 24))


def copies(folder, paths, others):
    """Copy files to other names in a folder; return their paths."""
    return [shutil.copy(path, str(folder / other)) for path, other in zip(paths, others, strict=True)]


def answer(call, dnn, networks, folder):
    """Run a call; return a summary of its result or of its exception."""
    paths = {name: (str(networks / f"{name}.cfg"), str(networks / f"{name}.weights")) for name in opencv4.CFGS}
    reading = Networks(dnn)
    frame = opencv4.scene()
    names = {
        "dnn": dnn, "np": np, "cv2": cv2, "Path": Path, "folder": folder, "frame": frame,
        "cfg": paths["tiny"][0], "weights": paths["tiny"][1], "net": dnn.readNetFromDarknet(*paths["tiny"]),
        "v2": dnn.readNetFromDarknet(*paths["v2"]), "classes": dnn.readNetFromDarknet(*paths["classes"]),
        "x": cv2.dnn.blobFromImage(frame, 1 / 255.0, (96, 64), swapRB=True), "OPENCV_4": OPENCV_4,
        "copies": lambda *others: copies(folder, paths["tiny"], others), "detector": reading.detector, "first": reading.first,
        "run": reading.run, "names": reading.names, "outputs": reading.outputs, "shapes": reading.shapes,
        "conv": conv, "yolo": yolo, "region": region, "two_heads": two_heads, "read": reading.read,
        "header": lambda *numbers: reading.header(folder, *paths["tiny"], numbers),
        "sized": lambda width: reading.sized(folder, *paths["tiny"], width),
    }  # fmt: skip
    tree = ast.parse(call)
    try:
        if isinstance(tree.body[-1], ast.Expr):
            last = ast.Expression(tree.body.pop().value)
            exec(compile(tree, call, "exec"), names)
            return summary(eval(compile(last, call, "eval"), names))
        return exec(compile(tree, call, "exec"), names)
    except Exception as e:
        return {"raises": [kind.__name__ for kind in type(e).__mro__ if kind is not object]}


def summary(value):
    """Return what a result is, in types of JSON: of an array its type, shape, mean and 12 values."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float, np.number)):
        return {
            "float" if isinstance(value, (float, np.floating)) else "int": value.item()
            if hasattr(value, "item")
            else value
        }
    if isinstance(value, np.ndarray):
        flat = value.astype(np.float64).ravel()
        values = flat[np.linspace(0, flat.size - 1, min(flat.size, 12)).astype(int)]
        mean = np.abs(finite).mean() if (finite := flat[np.isfinite(flat)]).size else 0.0
        return {"array": [value.dtype.name, list(value.shape)], "values": [float(f"{v:.6g}") for v in (mean, *values)]}
    if isinstance(value, (tuple, list)):
        return {type(value).__name__: [summary(item) for item in value]}
    return {"object": type(value).__name__}


OPENCV_4 = (
    "DNN_BACKEND_CANN DNN_BACKEND_CUDA DNN_BACKEND_DEFAULT DNN_BACKEND_INFERENCE_ENGINE DNN_BACKEND_OPENCV DNN_BACKEND_TIMVX "
    "DNN_BACKEND_VKCOM DNN_BACKEND_WEBNN DNN_TARGET_CPU DNN_TARGET_CPU_FP16 DNN_TARGET_CUDA DNN_TARGET_CUDA_FP16 "
    "DNN_TARGET_FPGA DNN_TARGET_HDDL DNN_TARGET_MYRIAD DNN_TARGET_NPU DNN_TARGET_OPENCL DNN_TARGET_OPENCL_FP16 DNN_TARGET_VULKAN"
).split()  # constants that OpenCV 5 has too


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as networks:
        opencv4.write(Path(networks))
        record = {}
        for call in CALLS:
            with tempfile.TemporaryDirectory() as folder:
                record[call] = answer(call, cv2.dnn, Path(networks), Path(folder))
    lines = [
        f"{json.dumps(call)}: {json.dumps(result)}" for call, result in {"opencv": cv2.__version__, **record}.items()
    ]
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{len(record)} calls")
